// How fast pages get into and out of a page file, beside what the store can do raw; each ratio within one run.
//
//   page_file_bench DIR [MIB [ROUNDS [own-thread]]]
//
// DIR lies on the store to be measured, MIB is the size of the guest. Each round writes and reads MIB of raw O_DIRECT data
// and a page file of MIB, in turn, then a blackout of scattered pages; medians and ranges are printed. With own-thread the
// writer's file is a ThreadedFile, as in a migration.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "bench/raw_io.h"
#include "fakes/page_content.h"
#include "pager/page_file_reader.h"
#include "pager/page_file_writer.h"
#include "transport/aio_file.h"
#include "transport/storage_wait.h"
#include "transport/threaded_file.h"

namespace pageferry {
namespace {

using namespace bench;

constexpr std::uint64_t kBlackoutPages = 16384;  // 64 MiB

struct Samples {
  const char* name;
  std::vector<double> values;
};

// How pages are handed to the writer: copied, or lent where they lie.
enum class Handing { copied, lent };

struct Whole {
  double gb_per_s, cpu_s;
};

struct Round {
  double raw_write, put, pass2_ms, blackout_ms, commit_ms, raw_read, open_ms, read;
  Whole copied, lent;
};

double cpu_seconds() {
  timespec used{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) / 1e9;
}

class Bench {
 public:
  Bench(std::string directory, std::uint64_t bytes, Threads threads)
      : threads_(threads),
        directory_(std::move(directory)),
        bytes_(bytes),
        fd_(::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    guest_ = must(AlignedMemory::map(bytes));
    for (std::uint64_t page = 0; page < pages_of_bytes(bytes); ++page) {
      const testing_support::PageArray content = testing_support::content_of(page, 1);
      std::copy(content.begin(), content.end(), guest_.data() + bytes_of_pages(page));
    }
    pool_ = must(IoBufferPool::make(kRawWriteBytes, kRawInFlight));
    pool_->populate(pool_->count());
  }

  Round run() {
    Round round{};
    round_raw_write(round);
    round_page_file(round);
    round.copied = whole(Handing::copied);
    round.lent = whole(Handing::lent);
    return round;
  }

 private:
  PageBytes page(std::uint64_t index) const {
    return PageBytes(guest_.data() + bytes_of_pages(index), kPageSizeBytes);
  }

  void round_raw_write(Round& round) {
    ::unlinkat(fd_.get(), "raw", 0);
    auto file = must(AioFile::create(fd_.get(), "raw", directory_, {}));
    must(file->submit_allocate(0, bytes_, 0));
    std::vector<IoDone> done;
    must(wait_for_completions(*file, {}, done));
    round.raw_write = raw_gb_per_s(*file, *pool_, bytes_, Direction::write);
    round.raw_read = raw_gb_per_s(*file, *pool_, bytes_, Direction::read);
  }

  void round_page_file(Round& round) {
    const MonotonicClock clock;
    const std::uint64_t pages = pages_of_bytes(bytes_);
    auto writer = begun_writer(clock);
    Nanoseconds start = clock.now();
    writer->begin_pass(1);
    for (std::uint64_t i = 0; i < pages; ++i) must(writer->put_page(PageIndex{i}, page(i)));
    round.put = static_cast<double>(bytes_) / 1e9 / seconds_since(start);
    start = clock.now();
    writer->begin_pass(2);
    const std::uint64_t stride = std::max<std::uint64_t>(1, pages / kBlackoutPages);
    for (std::uint64_t i = 0; i < pages; i += stride) must(writer->put_page(PageIndex{i}, page(i)));
    writer->begin_pass(3);
    round.pass2_ms = 1e3 * seconds_since(start);
    start = clock.now();
    must(writer->begin_blackout());
    for (std::uint64_t i = 1; i < pages; i += stride) must(writer->put_page(PageIndex{i}, page(i)));
    round.blackout_ms = 1e3 * seconds_since(start);
    const Nanoseconds finish = clock.now();
    must(writer->finish_and_commit());
    round.commit_ms = 1e3 * seconds_since(finish);
    writer.reset();
    read_page_file(round, pages);
  }

  // A guest that stands still, from the first page to the commit.
  Whole whole(Handing handing) {
    constexpr std::uint64_t kRunPages = 256;
    const MonotonicClock clock;
    const std::uint64_t pages = pages_of_bytes(bytes_);
    auto writer = begun_writer(clock);
    const double cpu_before = cpu_seconds();
    const Nanoseconds start = clock.now();
    writer->begin_pass(1);
    for (std::uint64_t i = 0; i < pages; i += kRunPages) {
      const std::uint64_t end = std::min(pages, i + kRunPages);
      if (handing == Handing::lent) {
        must(writer->put_lent_pages({PageIndex{i}, end - i},
                                    {page(i).data(), bytes_of_pages(end - i)}));
        continue;
      }
      for (std::uint64_t j = i; j < end; ++j) must(writer->put_page(PageIndex{j}, page(j)));
    }
    must(writer->begin_blackout());
    must(writer->finish_and_commit());
    return {static_cast<double>(bytes_) / 1e9 / seconds_since(start), cpu_seconds() - cpu_before};
  }

  void read_page_file(Round& round, std::uint64_t pages) {
    const MonotonicClock clock;
    Nanoseconds start = clock.now();
    auto reader = must(PageFileReader::open(must(AioFile::open(fd_.get(), "pages", directory_, {})),
                                            {}, clock, {}));
    round.open_ms = 1e3 * seconds_since(start);
    start = clock.now();
    std::uint64_t next = 0;
    unsigned in_flight = 0;
    while (next < pages || in_flight > 0) {
      while (next < pages && in_flight < kRawInFlight) {
        const PageRun run = reader->contiguous_run(PageIndex{next}, 256);
        auto started = reader->start_read(run, ReadClass::prefetch);
        // The tail comes by itself.
        if (!started && started.error().code == Errc::busy) break;
        must(std::move(started));
        next += run.pages;
        ++in_flight;
      }
      for (ReadDone& done : reader->poll()) {
        must(std::move(done.bytes));
        reader->release(done.ticket);
        --in_flight;
      }
    }
    round.read = static_cast<double>(bytes_) / 1e9 / seconds_since(start);
  }

  std::unique_ptr<PageFileWriter> begun_writer(const Clock& clock) {
    ::unlinkat(fd_.get(), "pages", 0);
    auto writer = must(PageFileWriter::make(new_file(), must(PageFileIds::random()), {}, clock));
    RamBlock block;
    block.name = "pc.ram";
    block.length_bytes = bytes_;
    must(writer->begin(must(MemoryLayout::make({block}))));
    return writer;
  }

  std::unique_ptr<StorageFile> new_file() {
    std::unique_ptr<StorageFile> file = must(AioFile::create(fd_.get(), "pages", directory_, {}));
    if (threads_ == Threads::one) return file;
    return must(ThreadedFile::over(std::move(file), Seconds(2)));
  }

  Threads threads_;
  std::string directory_;
  std::uint64_t bytes_;
  UniqueFd fd_;
  AlignedMemory guest_;
  std::unique_ptr<IoBufferPool> pool_;
};

void print(Samples samples) {
  std::sort(samples.values.begin(), samples.values.end());
  fmt::print("{:<44} {:>9.2f}  {:.2f}..{:.2f}\n", samples.name,
             samples.values[samples.values.size() / 2], samples.values.front(),
             samples.values.back());
}

}  // namespace
}  // namespace pageferry

int main(int argc, char** argv) {
  using namespace pageferry;
  if (argc < 2) {
    fmt::print(stderr, "usage: {} DIR [MIB [ROUNDS [own-thread]]]\n", argv[0]);
    return 2;
  }
  const std::uint64_t mib = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1024;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 5;
  Bench bench(argv[1], mib * kMiB, argc > 4 ? Threads::own_for_the_store : Threads::one);
  Samples rows[] = {{"raw write, GB/s", {}},
                    {"put_page of a full guest, GB/s", {}},
                    {"  share of raw", {}},
                    {"64 MiB scattered, home slots, ms", {}},
                    {"64 MiB scattered, blackout, ms", {}},
                    {"  commit after it, ms", {}},
                    {"raw read, GB/s", {}},
                    {"open (map), ms", {}},
                    {"whole guest read and checked, GB/s", {}},
                    {"copied, first page to commit, GB/s", {}},
                    {"  CPU, s", {}},
                    {"lent, first page to commit, GB/s", {}},
                    {"  CPU, s", {}},
                    {"  share of raw", {}}};
  for (int i = 0; i < rounds; ++i) {
    const Round r = bench.run();
    const double values[] = {r.raw_write,
                             r.put,
                             r.put / r.raw_write,
                             r.pass2_ms,
                             r.blackout_ms,
                             r.commit_ms,
                             r.raw_read,
                             r.open_ms,
                             r.read,
                             r.copied.gb_per_s,
                             r.copied.cpu_s,
                             r.lent.gb_per_s,
                             r.lent.cpu_s,
                             r.lent.gb_per_s / r.raw_write};
    for (std::size_t row = 0; row < std::size(rows); ++row) rows[row].values.push_back(values[row]);
  }
  fmt::print("{} MiB, {} rounds: median, range\n", mib, rounds);
  for (Samples& row : rows) print(std::move(row));
  return 0;
}
