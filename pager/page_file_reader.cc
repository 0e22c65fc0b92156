// RetriedReads does the reading; here is what is particular to a page file: where a run lies, what proves it, and the tail that
// is read by itself. What still has the wrong checksum after the last attempt is reported and never handed out.
//
// Invariant R1: no byte is handed out whose page's crc32c was not checked after the transfer that brought it (R2 and R3 are
// RetriedReads').
#include "pager/page_file_reader.h"

#include <fmt/format.h>

#include <algorithm>

#include "transport/crc32c.h"

namespace pageferry {
namespace {

constexpr unsigned kAttemptsMax = 10;

Result<void> check_options(const PageFileReaderOptions& options, unsigned queue_depth) {
  if (options.read_bytes_max == 0 || !is_page_aligned(options.read_bytes_max) ||
      options.read_bytes_max > kIoBytesMax) {
    return fail(Errc::invalid, fmt::format("reads of {} bytes: a multiple of {} up to {}",
                                           options.read_bytes_max, kPageSizeBytes, kIoBytesMax));
  }
  if (options.demand_slots == 0 || options.prefetch_slots == 0 ||
      options.demand_slots + options.prefetch_slots > queue_depth) {
    return fail(
        Errc::invalid,
        fmt::format("{} demand and {} prefetch slots: at least 1 each, together at most the "
                    "queue depth {}",
                    options.demand_slots, options.prefetch_slots, queue_depth));
  }
  if (options.attempts == 0 || options.attempts > kAttemptsMax) {
    return fail(Errc::invalid,
                fmt::format("{} attempts, limit 1..{}", options.attempts, kAttemptsMax));
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<PageFileReader>> PageFileReader::open(
    std::unique_ptr<StorageFile> file, const PageFileReaderOptions& options, const Clock& clock,
    const WaitBounds& bounds, PageReadPreparation prepared, const BaseFileOpener& open_base) {
  PF_TRY(check_options(options, file->queue_depth()));
  PF_ASSIGN(PageFileImage image,
            PageFileImage::load(*file, options.map_bytes_max, bounds, std::move(prepared.map)));
  auto bases = PageFileBases::open(image.header, open_base, bounds);
  if (!bases) return with_context(std::move(bases).error(), file->name());
  for (std::size_t number = 1; number <= bases->count(); ++number) {
    PF_TRY(check_options(options, bases->file(number).queue_depth()));
  }
  std::unique_ptr<PageFileReader> reader(
      new PageFileReader(std::move(file), std::move(image), std::move(*bases), options, clock));
  if (!prepared.memory.demand) {
    PF_ASSIGN(prepared.memory, PageReadMemory::make(options));
  }
  PF_TRY(reader->set_up(std::move(prepared.memory)));
  return reader;
}

PageFileReader::PageFileReader(std::unique_ptr<StorageFile> file, PageFileImage image,
                               PageFileBases bases, const PageFileReaderOptions& options,
                               const Clock& clock)
    : options_(options),
      clock_(clock),
      image_(std::move(image)),
      file_(std::move(file)),
      bases_(std::move(bases)) {}

Result<void> PageFileReader::set_up(PageReadMemory memory) {
  PF_ASSIGN(reads_,
            RetriedReads::make(*file_, {std::move(memory.demand), std::move(memory.prefetch)},
                               {options_.attempts, options_.retry_delay}, clock_,
                               [this](PageRun run, std::span<const std::byte> bytes,
                                      Result<void> transfer, unsigned attempts) {
                                 return judge(run, bytes, std::move(transfer), attempts);
                               }));
  for (std::size_t number = 1; number <= bases_.count(); ++number) {
    PF_TRY(reads_->watch(bases_.file(number)));
  }
  tail_ = TailCache::make(image_.header, image_.record, std::move(memory.tail));
  tail_.start_reads(*file_);
  return {};
}

PageFileReader::~PageFileReader() {
  const MonotonicClock real_clock;
  // Never set up: nothing was read.
  if (!wait_for_all({nullptr, Deadline::after(real_clock, Seconds(1))}) && reads_) {
    reads_->abandon();
  }
}

// False: something is still in flight.
bool PageFileReader::wait_for_all(const WaitBounds& bounds) {
  std::vector<IoDone> done;
  for (std::size_t number = 0; number <= bases_.count(); ++number) {
    StorageFile& file = number == 0 ? *file_ : bases_.file(number);
    while (file.in_flight() > 0) {
      done.clear();
      if (!wait_for_completions(file, bounds, done)) return false;
      for (const IoDone& one : done) {
        if ((one.tag & TailCache::kTagBit) != 0) tail_.note_done(one);
      }
    }
  }
  return true;
}

PageRun PageFileReader::contiguous_run(PageIndex page, std::uint64_t pages_max) const {
  const MapEntry first = image_.map.get(page);
  PF_CHECK(!first.is_zero());
  const RamBlock& block = image_.layout.blocks()[image_.layout.block_of(page)];
  const std::uint64_t in_block = (block.first_page + block.pages()) - page;
  const std::uint64_t limit =
      std::min({pages_max, in_block, pages_of_bytes(options_.read_bytes_max)});
  std::uint64_t pages = 1;
  while (pages < limit && image_.map.get(page + pages).location == first.location + pages) ++pages;
  return {page, pages};
}

Result<std::uint64_t> PageFileReader::start_read(PageRun run, ReadClass read_class) {
  if (run.pages == 0 || raw(run.first) >= image_.layout.pages() ||
      run.pages > image_.layout.pages() - raw(run.first) || is_zero(run.first) ||
      contiguous_run(run.first, run.pages).pages != run.pages) {
    return fail(Errc::invalid,
                fmt::format("{}: {} pages from page {} do not lie together in the file",
                            file_->name(), run.pages, raw(run.first)));
  }
  if (const auto bytes = find_in_tail(run)) {
    ++stats_.from_tail_cache;
    return reads_->answer(run, read_class, *bytes);
  }
  const MapEntry entry = image_.map.get(run.first);
  const bool in_this_file = entry.base() == 0;
  if (read_class == ReadClass::prefetch && in_this_file && tail_.expects(entry.location)) {
    return fail(Errc::busy, fmt::format("{}: the tail is being read", file_->name()));
  }
  return reads_->start(run, read_class, {file_of(entry), entry.block() * kFileBlockBytes});
}

std::optional<std::span<const std::byte>> PageFileReader::find_in_tail(PageRun run) const {
  const MapEntry entry = image_.map.get(run.first);
  if (entry.base() != 0) return std::nullopt;
  const auto bytes = tail_.find(entry.location, run.pages);
  if (!bytes || !check_pages(run, *bytes, 0)) return std::nullopt;
  return bytes;
}

PageFileReaderStats PageFileReader::stats() const {
  PageFileReaderStats stats = stats_;
  stats.reads = reads_->stats().reads;
  stats.bytes = reads_->stats().bytes;
  stats.given_up = reads_->stats().given_up;
  return stats;
}

std::string PageFileReader::describe(PageIndex page) const {
  const RamBlock& block = image_.layout.blocks()[image_.layout.block_of(page)];
  const MapEntry entry = image_.map.get(page);
  const std::string where =
      entry.base() == 0 ? std::string() : file_of(entry).name() + " of an earlier move, ";
  return fmt::format("page {} (RAM block '{}' offset {:#x}, {}file offset {})", raw(page),
                     block.name, bytes_of_pages(page - block.first_page), where,
                     entry.block() * kFileBlockBytes);
}

Result<void> PageFileReader::check_pages(PageRun run, std::span<const std::byte> bytes,
                                         unsigned attempts) const {
  for (std::uint64_t i = 0; i < run.pages; ++i) {
    const PageIndex page = run.first + i;
    const std::uint32_t expected = image_.map.get(page).crc;
    const std::uint32_t computed = crc32c(bytes.subspan(bytes_of_pages(i), kPageSizeBytes));
    if (computed == expected) continue;
    return fail(Errc::corrupt,
                fmt::format("{}: {}: checksum {:#010x}, stored was {:#010x}, after {} reads",
                            file_->name(), describe(page), computed, expected, attempts));
  }
  return {};
}

Result<void> PageFileReader::judge(PageRun run, std::span<const std::byte> bytes,
                                   Result<void> transfer, unsigned attempts) {
  if (!transfer) {
    ++stats_.io_failures;
    return with_context(transfer.error(), describe(run.first));
  }
  Result<void> proved = check_pages(run, bytes, attempts);
  if (!proved) ++stats_.checksum_failures;
  return proved;
}

std::vector<ReadDone> PageFileReader::poll() {
  std::vector<ReadDone> done;
  io_done_.clear();
  file_->reap(io_done_);
  for (std::size_t number = 1; number <= bases_.count(); ++number) {
    bases_.file(number).reap(io_done_);
  }
  for (IoDone& one : io_done_) {
    if ((one.tag & TailCache::kTagBit) != 0) {
      tail_.note_done(one);
      tail_.start_reads(*file_);
      continue;
    }
    reads_->note_done(std::move(one), done);
  }
  reads_->finish_turn(done);
  return done;
}

}  // namespace pageferry
