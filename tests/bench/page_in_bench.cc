// Page-in beside what the machine can do without us, in one session: a bare loop that reads and copies one page for each fault, raw
// O_DIRECT
// reads, bare UFFDIO_COPY. One JSON object for each round; tests/bench/page_in_report.py runs it and says what the figures mean.
//
//   page_in_bench DIR [MIB [ROUNDS [WORK_US [fill|faults]]]]       the last: only that, for a profiler
//
// DIR lies on the store to be measured. The guest is a process of its own; the pager is this one. Not a Google Benchmark: each value is a
// distribution inside one round, and the rounds must be interleaved.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bench/faulting_guest.h"
#include "bench/raw_io.h"
#include "fakes/page_content.h"
#include "pager/page_file_reader.h"
#include "pager/page_file_writer.h"
#include "pager/userfault_page_in.h"
#include "transport/aio_file.h"

namespace pageferry::bench {
namespace {

constexpr std::uint32_t kNoFaultNs = 2'000;  // a touch that was faster found its page there
constexpr std::uint64_t kZipfAccesses = 200'000;

struct Latency {
  double p50_us = 0;
  double p99_us = 0;
  std::uint64_t count = 0;
};

Latency latency_of(const Seen& seen) {
  std::vector<std::uint32_t> ns;
  for (std::size_t i = 0; i < seen.samples; ++i) {
    if (seen.touch_ns[i] > kNoFaultNs) ns.push_back(seen.touch_ns[i]);
  }
  if (ns.empty()) return {};
  std::sort(ns.begin(), ns.end());
  return {.p50_us = ns[ns.size() / 2] / 1e3,
          .p99_us = ns[ns.size() * 99 / 100] / 1e3,
          .count = ns.size()};
}

// A page-in loop in a thread of its own.
class Pager {
 public:
  Pager(const FaultingGuest& guest, PageSupply& supply, PageInOptions options) {
    UserfaultVmm vmm{.userfault = guest.userfault(), .block_addresses = {guest.address()}};
    loop_ = must(UserfaultPageIn::make(std::move(vmm), supply.layout(), supply, nullptr,
                                       {.page_in = std::move(options)}, clock_));
    thread_ = std::thread([this] {
      const auto ended = loop_->serve(stop_, [](const UserfaultPageInFigures&) {});
      if (ended) seconds_ = seconds_since(started_);
    });
  }
  ~Pager() { stop(); }
  void stop() {
    stop_.cancel();
    if (thread_.joinable()) thread_.join();
  }
  // Until every page is there.
  double seconds() {
    thread_.join();
    return seconds_;
  }
  const UserfaultPageIn& loop() const { return *loop_; }

 private:
  const MonotonicClock clock_;
  const Nanoseconds started_ = clock_.now();
  CancelSignal stop_;
  std::unique_ptr<UserfaultPageIn> loop_;
  double seconds_ = 0;
  std::thread thread_;
};

class Bench {
 public:
  Bench(std::string directory, std::uint64_t bytes, std::uint64_t work_ns)
      : directory_(std::move(directory)),
        bytes_(bytes),
        work_ns_(work_ns),
        fd_(::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    for (const char* name : {"pages", "plain"}) ::unlinkat(fd_.get(), name, 0);
    auto writer =
        must(PageFileWriter::make(must(AioFile::create(fd_.get(), "pages", directory_, {})),
                                  must(PageFileIds::random()), {}, clock_));
    RamBlock block;
    block.name = "ram";
    block.length_bytes = bytes_;
    must(writer->begin(must(MemoryLayout::make({block}))));
    writer->begin_pass(1);
    for (std::uint64_t page = 0; page < pages_of_bytes(bytes_); ++page) {
      const testing_support::PageArray content = testing_support::content_of(page, 1);
      must(writer->put_page(PageIndex{page}, content));
    }
    must(writer->begin_blackout());
    must(writer->finish_and_commit());
    write_plain_file();
  }
  ~Bench() {
    for (const char* name : {"pages", "plain"}) ::unlinkat(fd_.get(), name, 0);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  std::string part(std::string_view name, std::uint64_t seed) {
    if (name == "fill")
      return fmt::format(
          R"({{"read_gb_s":{:.3f},"copy_gb_s":{:.3f},"bare_fill_gb_s":{:.3f},"fill_gb_s":{:.3f}}})",
          raw_read(), raw_copy(), bare_fill(), fill_speed());
    return fmt::format(R"({{"bare":{},"lazy":{},"loaded":{}}})", json(bare_faults(seed)),
                       json(lazy_faults(seed)), json(loaded_faults(seed).first));
  }
  std::string round(std::uint64_t seed) {
    const Latency bare = bare_faults(seed);
    const Latency lazy = lazy_faults(seed);
    const double read = raw_read();
    const double copy = raw_copy();
    const double bare_filled = bare_fill();
    const double fill = fill_speed();
    const auto [loaded, loaded_fill] = loaded_faults(seed);
    const std::string zipf = zipf_round(seed);
    return fmt::format(
        R"({{"bare":{},"lazy":{},"loaded":{},"read_gb_s":{:.3f},"copy_gb_s":{:.3f},)"
        R"("bare_fill_gb_s":{:.3f},"fill_gb_s":{:.3f},"loaded_fill_gb_s":{:.3f},"attach_ms":{:.2f},{}}})",
        json(bare), json(lazy), json(loaded), read, copy, bare_filled, fill, loaded_fill,
        attach_ms(), zipf);
  }

 private:
  static std::string json(const Latency& latency) {
    return fmt::format(R"({{"p50_us":{:.1f},"p99_us":{:.1f},"count":{}}})", latency.p50_us,
                       latency.p99_us, latency.count);
  }
  // The guest's pages in a row and nothing else: what the floors read. A page file has room besides that was never written, which a read
  // of it gets without the disk.
  void write_plain_file() {
    auto file = must(AioFile::create(fd_.get(), "plain", directory_, {}));
    const AlignedMemory piece = must(AlignedMemory::map(kRawWriteBytes));
    for (std::uint64_t at = 0; at < bytes_; at += kRawWriteBytes) {
      for (std::uint64_t offset = 0; offset < kRawWriteBytes; offset += kPageSizeBytes) {
        const testing_support::PageArray content =
            testing_support::content_of((at + offset) / kPageSizeBytes, 1);
        std::memcpy(piece.data() + offset, content.data(), kPageSizeBytes);
      }
      must(write_blocking(*file, std::span(piece.data(), kRawWriteBytes), at, {}));
    }
    must(sync_blocking(*file, {}));
  }
  std::unique_ptr<PageFileReader> open_reader() const {
    return must(PageFileReader::open(must(AioFile::open(fd_.get(), "pages", directory_, {})), {},
                                     clock_, {}));
  }
  double gb_per_s(double seconds) const { return static_cast<double>(bytes_) / 1e9 / seconds; }

  // What a loop of a few lines does for a fault: wait, read the page, copy it.
  Latency bare_faults(std::uint64_t seed) {
    FaultingGuest guest(bytes_);
    const UniqueFd userfault = guest.userfault();
    const UniqueFd file(::openat(fd_.get(), "plain", O_RDONLY | O_DIRECT | O_CLOEXEC));
    const AlignedMemory page = must(AlignedMemory::map(kPageSizeBytes));
    guest.begin({.workload = Workload::random_touches, .seed = seed});
    std::array<pollfd, 2> entries{{{.fd = userfault.get(), .events = POLLIN, .revents = 0},
                                   {.fd = guest.done_fd(), .events = POLLIN, .revents = 0}}};
    for (;;) {
      ::poll(entries.data(), entries.size(), -1);
      if (entries[1].revents != 0) break;
      uffd_msg message;
      if (::read(userfault.get(), &message, sizeof message) != sizeof message) continue;
      const std::uint64_t address = message.arg.pagefault.address & ~(kPageSizeBytes - 1);
      const auto offset = static_cast<off_t>(address - guest.address());
      PF_CHECK(::pread(file.get(), page.data(), kPageSizeBytes, offset) ==
               static_cast<ssize_t>(kPageSizeBytes));
      uffdio_copy request{.dst = address,
                          .src = reinterpret_cast<std::uintptr_t>(page.data()),
                          .len = kPageSizeBytes,
                          .mode = 0,
                          .copy = 0};
      PF_CHECK(::ioctl(userfault.get(), UFFDIO_COPY, &request) == 0);
    }
    guest.wait();
    return latency_of(guest.seen());
  }

  Latency lazy_faults(std::uint64_t seed) {
    FaultingGuest guest(bytes_);
    const auto reader = open_reader();
    Pager pager(guest, *reader, {.order = PrefetchOrder::none});
    guest.begin({.workload = Workload::random_touches, .seed = seed});
    guest.wait();
    return latency_of(guest.seen());
  }

  double raw_read() {
    double best = 0;
    for (const unsigned in_flight : {3U, kRawInFlight}) {
      auto file = must(AioFile::open(fd_.get(), "plain", directory_, {}));
      auto pool = must(IoBufferPool::make(kRawReadBytes, in_flight));
      pool->populate(pool->count());
      best = std::max(best, raw_gb_per_s(*file, *pool, bytes_, Direction::read, in_flight));
    }
    return best;
  }

  double raw_copy() {
    FaultingGuest guest(bytes_);
    const UniqueFd userfault = guest.userfault();
    const AlignedMemory buffer = must(AlignedMemory::map(2 * kMiB));
    std::memset(buffer.data(), 1, buffer.size());
    const Nanoseconds start = clock_.now();
    for (std::uint64_t at = 0; at < bytes_; at += kRawReadBytes) {
      uffdio_copy request{.dst = guest.address() + at,
                          .src = reinterpret_cast<std::uintptr_t>(buffer.data()),
                          .len = kRawReadBytes,
                          .mode = 0,
                          .copy = 0};
      PF_CHECK(::ioctl(userfault.get(), UFFDIO_COPY, &request) == 0);
    }
    return gb_per_s(seconds_since(start));
  }

  // What a loop of a few lines reaches with one thread: reads in flight, each copied as it comes, nothing checked.
  double bare_fill() {
    constexpr unsigned kInFlight = kRawInFlight;
    FaultingGuest guest(bytes_);
    const UniqueFd userfault = guest.userfault();
    auto file = must(AioFile::open(fd_.get(), "plain", directory_, {}));
    auto pool = must(IoBufferPool::make(kRawReadBytes, kInFlight));
    pool->populate(pool->count());
    std::vector<IoBuffer> buffers;
    for (unsigned i = 0; i < kInFlight; ++i) buffers.push_back(pool->take());
    std::vector<IoDone> done;
    std::array<std::uint64_t, kInFlight> places{};
    const Nanoseconds start = clock_.now();
    std::uint64_t next = 0;
    const auto read_next = [&](std::size_t buffer) {
      if (next == bytes_) return;
      places[buffer] = next;
      must(file->submit_read(buffers[buffer].bytes(), next, buffer, IoPriority::background));
      next += kRawReadBytes;
    };
    for (std::size_t i = 0; i < kInFlight; ++i) read_next(i);
    while (file->in_flight() > 0) {
      done.clear();
      must(wait_for_completions(*file, {}, done));
      for (IoDone& one : done) {
        must(std::move(one.outcome));
        uffdio_copy request{
            .dst = guest.address() + places[one.tag],
            .src = reinterpret_cast<std::uintptr_t>(buffers[one.tag].bytes().data()),
            .len = kRawReadBytes,
            .mode = 0,
            .copy = 0};
        PF_CHECK(::ioctl(userfault.get(), UFFDIO_COPY, &request) == 0);
        read_next(one.tag);
      }
    }
    return gb_per_s(seconds_since(start));
  }

  double fill_speed() {
    FaultingGuest guest(bytes_);
    const auto reader = open_reader();
    Pager pager(guest, *reader, {.order = PrefetchOrder::linear});
    return gb_per_s(pager.seconds());
  }

  // Faults without a pause while prefetch fills the guest as fast as it can.
  std::pair<Latency, double> loaded_faults(std::uint64_t seed) {
    FaultingGuest guest(bytes_);
    const auto reader = open_reader();
    guest.begin({.workload = Workload::random_touches, .seed = seed});
    Pager pager(guest, *reader, {.order = PrefetchOrder::linear});
    const double fill = gb_per_s(pager.seconds());
    guest.seen().stop = true;
    guest.wait();
    return {latency_of(guest.seen()), fill};
  }

  // A guest waits for a page; from nothing to that page.
  double attach_ms() {
    FaultingGuest guest(bytes_);
    guest.begin({.workload = Workload::one_touch, .first = 12345 % pages_of_bytes(bytes_)});
    pollfd waits{.fd = guest.userfault().release(), .events = POLLIN, .revents = 0};
    ::poll(&waits, 1, -1);
    ::close(waits.fd);
    const Nanoseconds start = clock_.now();
    const auto reader = open_reader();
    UserfaultVmm vmm{.userfault = guest.userfault(), .block_addresses = {guest.address()}};
    vmm.tables.emplace(must(PageTables::open(guest.pid())));
    auto loop = must(UserfaultPageIn::make(std::move(vmm), reader->layout(), *reader, nullptr,
                                           {.page_in = {.order = PrefetchOrder::none}}, clock_));
    CancelSignal stop;
    std::thread thread(
        [&] { static_cast<void>(loop->serve(stop, [](const UserfaultPageInFigures&) {})); });
    guest.wait();
    const double ms = 1e3 * seconds_since(start);
    stop.cancel();
    thread.join();
    return ms;
  }

  enum class Start { empty, resident };
  struct Zipf {
    std::vector<std::uint32_t> stretches;
    std::uint64_t faults = 0;
    TouchRecord touches;
  };
  Zipf run_zipf(PageInOptions options, std::uint64_t seed, Start start) {
    FaultingGuest guest(bytes_);
    const auto reader = open_reader();
    std::optional<Pager> pager;
    if (start == Start::resident) {
      Pager filler(guest, *reader, {.order = PrefetchOrder::linear});
      filler.seconds();
    }
    const Orders orders{
        .workload = Workload::zipf, .accesses = kZipfAccesses, .seed = seed, .work_ns = work_ns_};
    if (start == Start::empty) pager.emplace(guest, *reader, std::move(options));
    guest.begin(orders);
    guest.wait();
    Zipf zipf;
    const Seen& seen = guest.seen();
    zipf.stretches.assign(seen.accesses.begin(),
                          seen.accesses.begin() + static_cast<std::ptrdiff_t>(seen.stretches));
    if (pager) {
      zipf.faults = pager->loop().figures().faults;
      pager->stop();
      zipf.touches = pager->loop().touches();
    }
    return zipf;
  }

  static std::string list(const std::vector<std::uint32_t>& values) {
    return fmt::format("[{}]", fmt::join(values, ","));
  }

  std::string zipf_round(std::uint64_t seed) {
    const Zipf resident = run_zipf({}, seed, Start::resident);
    const Zipf lazy = run_zipf({.order = PrefetchOrder::none}, seed, Start::empty);
    // Through the file, as the next restore would.
    const auto reader = open_reader();
    const TouchRecord record =
        must(TouchRecord::decode(lazy.touches.encode(reader->layout()), reader->layout()));
    PageInOptions replay{.order = PrefetchOrder::recorded};
    replay.recorded = record.runs();
    const Zipf same = run_zipf(replay, seed, Start::empty);
    const Zipf other = run_zipf(replay, seed + 1000, Start::empty);
    return fmt::format(
        R"("zipf":{{"stretch_ms":{},"resident":{},"lazy":{},"lazy_faults":{},"recorded":{},)"
        R"("recorded_faults":{},"other_seed":{},"other_seed_faults":{},"runs":{}}})",
        kStretch / Milliseconds(1), list(resident.stretches), list(lazy.stretches), lazy.faults,
        list(same.stretches), same.faults, list(other.stretches), other.faults,
        record.runs().size());
  }

  const MonotonicClock clock_;
  std::string directory_;
  std::uint64_t bytes_;
  std::uint64_t work_ns_;
  UniqueFd fd_;
};

}  // namespace
}  // namespace pageferry::bench

int main(int argc, char** argv) {
  using namespace pageferry::bench;
  if (argc < 2) {
    fmt::print(stderr, "usage: {} DIR [MIB [ROUNDS [WORK_US [fill|faults]]]]\n", argv[0]);
    return 2;
  }
  const std::uint64_t mib = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 512;
  const std::uint64_t rounds = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 5;
  const std::uint64_t work_us = argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 10;
  Bench bench(argv[1], mib * kMiB, work_us * 1000);
  for (std::uint64_t i = 0; i < rounds; ++i) {
    fmt::print("{}\n", argc > 5 ? bench.part(argv[5], i + 1) : bench.round(i + 1));
    std::fflush(stdout);
  }
  return 0;
}
