// What a collection costs by write protection, and what the first write to an armed page costs the writer.
//
//   dirty_source_bench [MIB [ROUNDS]]
//
// For anonymous memory and a memfd of MIB, asynchronous and synchronous in turn: a collection when nothing was written, when every
// 100th page was, and when every 8th was. The pages are small and present. Medians of ROUNDS, in milliseconds; the write in
// microseconds a page.
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "fakes/page_content.h"
#include "pager/async_write_protect_source.h"
#include "pager/sync_write_protect_source.h"
#include "transport/os/clock.h"

namespace pageferry {
namespace {

using testing_support::layout_of;

constexpr std::uint64_t kSeldom = 100;
constexpr std::uint64_t kOften = 8;

template <typename Work>
double milliseconds_of(Work work) {
  const Nanoseconds start = MonotonicClock().now();
  work();
  return std::chrono::duration<double, std::milli>(MonotonicClock().now() - start).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

std::byte* map_memory(std::uint64_t bytes, int file) {
  const int flags = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, file, 0);
  PF_CHECK(at != MAP_FAILED);
  return static_cast<std::byte*>(at);
}

void write_every(std::byte* memory, std::uint64_t pages, std::uint64_t stride) {
  for (std::uint64_t page = 0; page < pages; page += stride) {
    *static_cast<volatile std::byte*>(memory + bytes_of_pages(page)) = std::byte{1};
  }
}

double collect(DirtySource& source, std::uint64_t pages, std::uint64_t pages_expected) {
  DirtyBitmap dirty(pages);
  const double taken = milliseconds_of([&] { PF_CHECK(source.collect_into(dirty).has_value()); });
  PF_CHECK(dirty.count() == pages_expected);
  return taken;
}

void measure(const char* name, DirtySource& source, std::byte* memory, std::uint64_t pages,
             int rounds) {
  const auto started = source.start();
  if (!started) {
    fmt::print("{:24} {}\n", name, started.error().message);
    return;
  }
  const double first = collect(source, pages, pages);
  std::vector<double> clean;
  std::vector<double> seldom;
  std::vector<double> often;
  std::vector<double> write;
  for (int i = 0; i < rounds; ++i) {
    clean.push_back(collect(source, pages, 0));
    write_every(memory, pages, kSeldom);
    seldom.push_back(collect(source, pages, (pages + kSeldom - 1) / kSeldom));
    const double written = milliseconds_of([&] { write_every(memory, pages, kOften); });
    write.push_back(written * 1000 * static_cast<double>(kOften) / static_cast<double>(pages));
    often.push_back(collect(source, pages, (pages + kOften - 1) / kOften));
  }
  PF_CHECK(source.stop().has_value());
  fmt::print("{:24} {:8.2f} {:8.2f} {:8.2f} {:8.2f} {:10.2f}\n", name, first, median(clean),
             median(seldom), median(often), median(write));
}

int run(std::uint64_t mib, int rounds) {
  const std::uint64_t pages = pages_of_bytes(mib << 20);
  const MemoryLayout layout = layout_of({{"pc.ram", pages}});
  const int file = ::memfd_create("bench", MFD_CLOEXEC);
  PF_CHECK(file >= 0 && ::ftruncate(file, static_cast<off_t>(layout.bytes())) == 0);
  fmt::print("{} MiB, medians of {}\n{:24} {:>8} {:>8} {:>8} {:>8} {:>10}\n", mib, rounds,
             "milliseconds", "first", "clean", "1/100", "1/8", "us/write");
  for (const int backing : {-1, file}) {
    std::byte* const memory = map_memory(layout.bytes(), backing);
    PF_CHECK(::madvise(memory, layout.bytes(), MADV_NOHUGEPAGE) == 0);
    write_every(memory, pages, 1);
    const std::vector<std::uint64_t> addresses = {reinterpret_cast<std::uintptr_t>(memory)};
    AsyncWriteProtectSource async(layout, addresses);
    measure(backing < 0 ? "async, anonymous" : "async, memfd", async, memory, pages, rounds);
    SyncWriteProtectSource sync(layout, addresses);
    measure(backing < 0 ? "sync, anonymous" : "sync, memfd", sync, memory, pages, rounds);
    ::munmap(memory, layout.bytes());
  }
  ::close(file);
  return 0;
}

}  // namespace
}  // namespace pageferry

int main(int argc, char** argv) {
  const std::uint64_t mib = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1024;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 9;
  if (mib == 0 || rounds <= 0) {
    fmt::print(stderr, "usage: dirty_source_bench [MIB [ROUNDS]]\n");
    return 2;
  }
  return pageferry::run(mib, rounds);
}
