// Page-out beside what the machine can do without us, in one session: raw O_DIRECT writes, a raw sequential write of what a blackout
// holds, and a guest that is not tracked. One JSON object for each round; tests/bench/bounds.py runs it and says what the figures mean.
//
//   page_out_bench DIR [MIB [ROUNDS [SECONDS]]]
//
// DIR lies on the store to be measured; a guest of MIB is paged out by PageOut, tracked by its page tables, as the hook does it. SECONDS:
// how long the guest of the tracking figure writes, each time. Not a Google Benchmark: the ratios are made of runs that are interleaved.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/raw_io.h"
#include "bench/writing_guest.h"
#include "fakes/page_content.h"
#include "pager/async_write_protect_source.h"
#include "pager/guest_memory.h"
#include "pager/page_file_writer.h"
#include "pager/page_out.h"
#include "pager/sync_write_protect_source.h"
#include "transport/aio_file.h"
#include "transport/storage_wait.h"
#include "transport/threaded_file.h"

namespace pageferry::bench {
namespace {

constexpr std::uint64_t kBlackoutBytes = 64 * kMiB;
constexpr Nanoseconds kPassLength = Seconds(1);  // between two collections beside the writing guest

double ms_since(Nanoseconds start) {
  return 1e3 * seconds_since(start);
}

struct PagedOut {
  double seconds = 0;  // first page to commit
  double written_bytes = 0;
};
struct Blackout {
  double ms = 0;  // collection, pages, all of it durable, commit record
  double collect_and_put_ms = 0;
};

class Bench {
 public:
  Bench(std::string directory, std::uint64_t bytes, Nanoseconds stretch)
      : directory_(std::move(directory)),
        bytes_(bytes),
        stretch_(stretch),
        fd_(::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    RamBlock block;
    block.name = "ram";
    block.length_bytes = bytes;
    layout_ = must(MemoryLayout::make({block}));
    pool_ = must(IoBufferPool::make(kRawWriteBytes, kRawInFlight));
    pool_->populate(pool_->count());
    take_guest(GuestPageSize::small);
  }
  ~Bench() {
    for (const char* name : {"raw", "pages"}) ::unlinkat(fd_.get(), name, 0);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  std::string round(std::uint64_t seed) {
    take_guest(GuestPageSize::huge);
    const std::string huge = page_outs();
    take_guest(GuestPageSize::small);
    const std::string small = page_outs();
    const double raw_blackout = raw_blackout_ms();
    const Blackout blackout = scattered_blackout(seed);
    return fmt::format(R"({{"huge":{},"small":{},"raw_blackout_ms":{:.2f},"blackout_ms":{:.2f},)"
                       R"("blackout_pages_ms":{:.2f},"tracking":{}}})",
                       huge, small, raw_blackout, blackout.ms, blackout.collect_and_put_ms,
                       tracking(seed));
  }

 private:
  void write(std::uint64_t page, std::uint64_t age) {
    const testing_support::PageArray content = testing_support::content_of(page, age);
    std::copy(content.begin(), content.end(), guest_.data() + bytes_of_pages(page));
  }
  double gb_per_s(double seconds) const { return static_cast<double>(bytes_) / 1e9 / seconds; }
  std::uint64_t address() const { return reinterpret_cast<std::uintptr_t>(guest_.data()); }

  // What memory the guest has; the disk's transfers out of small pages cost more.
  enum class GuestPageSize { small, huge };
  void take_guest(GuestPageSize size) {
    guest_ = AlignedMemory();
    guest_ = must(AlignedMemory::map(bytes_));
    const int advice = size == GuestPageSize::huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
    PF_CHECK(::madvise(guest_.data(), bytes_, advice) == 0);
    for (std::uint64_t page = 0; page < pages_of_bytes(bytes_); ++page) write(page, 1);
  }

  std::string page_outs() {
    const double raw = raw_write_gb_s();
    const PagedOut whole = page_out();
    return fmt::format(
        R"({{"raw_write_gb_s":{:.3f},"page_out_gb_s":{:.3f},"written_gb_s":{:.3f}}})", raw,
        gb_per_s(whole.seconds), whole.written_bytes / 1e9 / whole.seconds);
  }

  std::unique_ptr<AioFile> reserved_file(std::uint64_t bytes) {
    ::unlinkat(fd_.get(), "raw", 0);
    auto file = must(AioFile::create(fd_.get(), "raw", directory_, {}));
    must(file->submit_allocate(0, bytes, 0));
    std::vector<IoDone> done;
    must(wait_for_completions(*file, {}, done));
    return file;
  }
  // What the store takes out of the guest's own memory: reserved, in large pieces, durable.
  double raw_write_gb_s() {
    auto file = reserved_file(bytes_);
    std::vector<IoDone> done;
    const Nanoseconds start = clock_.now();
    for (std::uint64_t at = 0; at < bytes_ || file->in_flight() > 0;) {
      for (; at < bytes_ && file->in_flight() < kRawInFlight; at += kRawWriteBytes) {
        must(file->submit_write({guest_.data() + at, kRawWriteBytes}, at, 0, IoPriority::normal));
      }
      done.clear();
      must(wait_for_completions(*file, {}, done));
      for (IoDone& one : done) must(std::move(one.outcome));
    }
    must(sync_blocking(*file, {}));
    return gb_per_s(seconds_since(start));
  }
  // A blackout's bytes, over what was written before, out of large pages, durable.
  double raw_blackout_ms() {
    auto file = reserved_file(kBlackoutBytes);
    raw_gb_per_s(*file, *pool_, kBlackoutBytes, Direction::write);
    const double again = raw_gb_per_s(*file, *pool_, kBlackoutBytes, Direction::write);
    return static_cast<double>(kBlackoutBytes) / 1e6 / again;
  }

  struct Paging {
    explicit Paging(Bench& bench)
        : source(bench.layout_, {bench.address()}),
          memory(must(GuestMemory::make(bench.layout_, {bench.guest_.data()}))) {
      ::unlinkat(bench.fd_.get(), "pages", 0);
      std::unique_ptr<StorageFile> file =
          must(AioFile::create(bench.fd_.get(), "pages", bench.directory_, {}));
      writer = must(PageFileWriter::make(must(ThreadedFile::over(std::move(file), Seconds(2))),
                                         must(PageFileIds::random()), {}, bench.clock_));
      must(writer->begin(bench.layout_));
      must(source.start());
      out.emplace(memory, source, *writer, cancel, bench.clock_);
    }
    ~Paging() {
      out.reset();
      static_cast<void>(source.stop());
    }
    Paging(const Paging&) = delete;
    Paging& operator=(const Paging&) = delete;

    CancelSignal cancel;
    AsyncWriteProtectSource source;
    GuestMemory memory;
    std::unique_ptr<PageFileWriter> writer;
    std::optional<PageOut> out;
  };

  // A guest that writes nothing meanwhile.
  PagedOut page_out() {
    Paging paging(*this);
    const Nanoseconds start = clock_.now();
    must(paging.out->run_brownout({}, {}));
    must(paging.out->run_blackout());
    must(paging.writer->finish_and_commit());
    const double seconds = seconds_since(start);
    const PageFileWriterStats stats = paging.writer->stats();
    return {seconds, static_cast<double>(stats.bytes_written + stats.tail_prewritten_bytes)};
  }

  // The guest has written scattered pages since the last live pass.
  Blackout scattered_blackout(std::uint64_t seed) {
    Paging paging(*this);
    const std::uint64_t stride = pages_of_bytes(bytes_) / pages_of_bytes(kBlackoutBytes);
    const auto write_every = [&](std::uint64_t first) {
      for (std::uint64_t page = first; page < pages_of_bytes(bytes_); page += stride) {
        write(page, seed + 1);
      }
    };
    must(paging.out->run_live_pass());
    write_every(1);
    must(paging.out->run_live_pass());  // finds them
    must(paging.out->run_live_pass());  // brings them
    write_every(0);
    const Nanoseconds start = clock_.now();
    must(paging.out->run_blackout());
    const double put_ms = ms_since(start);
    must(paging.writer->finish_and_commit());
    return {ms_since(start), put_ms};
  }

  std::string tracking(std::uint64_t seed) {
    std::string parts;
    for (const Backing backing : {Backing::anonymous, Backing::memfd}) {
      WritingGuest guest(bytes_, backing);
      const std::vector<std::uint64_t> addresses{guest.address()};
      const GuestFigures untracked = guest.run(stretch_, kPassLength, nullptr, seed);
      AsyncWriteProtectSource async(layout_, addresses);
      const GuestFigures by_async = guest.run(stretch_, kPassLength, &async, seed);
      SyncWriteProtectSource sync(layout_, addresses);
      const GuestFigures by_sync = guest.run(stretch_, kPassLength, &sync, seed);
      parts += fmt::format(
          R"({}"{}":{{"untracked":{},"async":{},"async_collect_ms":{:.3f},"sync":{},"sync_collect_ms":{:.3f}}})",
          parts.empty() ? "" : ",", backing == Backing::anonymous ? "anonymous" : "memfd",
          untracked.accesses, by_async.accesses, by_async.collect_ms, by_sync.accesses,
          by_sync.collect_ms);
    }
    return fmt::format(R"({{{},"gib":{:.3f}}})", parts,
                       static_cast<double>(bytes_) / static_cast<double>(1024 * kMiB));
  }

  const MonotonicClock clock_;
  std::string directory_;
  std::uint64_t bytes_;
  Nanoseconds stretch_;
  UniqueFd fd_;
  AlignedMemory guest_;
  MemoryLayout layout_;
  std::unique_ptr<IoBufferPool> pool_;
};

}  // namespace
}  // namespace pageferry::bench

int main(int argc, char** argv) {
  using namespace pageferry::bench;
  if (argc < 2) {
    fmt::print(stderr, "usage: {} DIR [MIB [ROUNDS [SECONDS]]]\n", argv[0]);
    return 2;
  }
  const std::uint64_t mib = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1024;
  const std::uint64_t rounds = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 5;
  const std::uint64_t seconds = argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 4;
  if (mib * kMiB < 2 * 64 * kMiB) {
    fmt::print(stderr, "the guest must be larger than 128 MiB: its blackout holds 64\n");
    return 2;
  }
  Bench bench(argv[1], mib * kMiB, pageferry::Seconds(seconds));
  for (std::uint64_t i = 0; i < rounds; ++i) {
    fmt::print("{}\n", bench.round(i + 1));
    std::fflush(stdout);
  }
  return 0;
}
