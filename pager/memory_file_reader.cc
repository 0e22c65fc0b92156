// RetriedReads over offsets that are page numbers; a transfer that says it was good is believed.
#include "pager/memory_file_reader.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "pager/page_file_reader.h"
#include "transport/storage_wait.h"

namespace pageferry {
namespace {

constexpr std::size_t kHolesMax = std::size_t{1} << 20;  // finding one takes about a microsecond

Result<MemoryLayout> layout_of_file(const StorageFile& file) {
  PF_ASSIGN(const std::uint64_t bytes, file.size());
  if (bytes == 0 || !is_page_aligned(bytes) || bytes > kMemoryBytesMax) {
    return fail(Errc::invalid,
                fmt::format("memory file {} has {} bytes, must be a multiple of {} in 1..{}",
                            file.name(), bytes, kPageSizeBytes, kMemoryBytesMax));
  }
  return MemoryLayout::make({RamBlock{.name = "memory", .length_bytes = bytes}});
}

}  // namespace

Result<std::vector<PageRun>> find_holes(const UniqueFd& file, std::uint64_t pages,
                                        const std::string& name) {
  std::vector<PageRun> holes;
  const auto end = static_cast<off_t>(bytes_of_pages(pages));
  off_t at = 0;
  while (at < end && holes.size() < kHolesMax) {
    const off_t hole = ::lseek(file.get(), at, SEEK_HOLE);
    if (hole < 0 && errno == EINVAL) return std::vector<PageRun>();
    if (hole < 0) return syscall_error("lseek", name);
    off_t data = hole >= end ? end : ::lseek(file.get(), hole, SEEK_DATA);
    if (data < 0 && errno != ENXIO) return syscall_error("lseek", name);
    if (data < 0 || data > end) data = end;
    // A page that is only partly a hole is read.
    const auto first = pages_of_bytes(static_cast<std::uint64_t>(hole) + kPageSizeBytes - 1);
    const auto last = pages_of_bytes(static_cast<std::uint64_t>(data));
    if (first < last) holes.push_back({.first = PageIndex{first}, .pages = last - first});
    if (data <= at) break;  // somebody writes to it
    at = data;
  }
  return holes;
}

Result<std::unique_ptr<MemoryFileReader>> MemoryFileReader::open(
    std::unique_ptr<StorageFile> file, const std::vector<PageRun>& holes,
    const MemoryFileReaderOptions& options, const Clock& clock) {
  PF_CHECK(options.demand_slots + options.prefetch_slots <= file->queue_depth());
  PF_ASSIGN(MemoryLayout layout, layout_of_file(*file));
  std::unique_ptr<MemoryFileReader> reader(
      new MemoryFileReader(std::move(file), std::move(layout), options, clock));
  for (const PageRun& hole : holes) {
    PF_CHECK(raw(hole.first) + hole.pages <= reader->layout_.pages());
    for (std::uint64_t i = 0; i < hole.pages; ++i) reader->holes_[raw(hole.first) + i] = true;
  }
  PF_TRY(reader->set_up());
  return reader;
}

MemoryFileReader::MemoryFileReader(std::unique_ptr<StorageFile> file, MemoryLayout layout,
                                   const MemoryFileReaderOptions& options, const Clock& clock)
    : options_(options),
      clock_(clock),
      layout_(std::move(layout)),
      holes_(layout_.pages()),
      file_(std::move(file)) {}

Result<void> MemoryFileReader::set_up() {
  PageFileReaderOptions staging;
  staging.read_bytes_max = options_.read_bytes_max;
  staging.demand_slots = options_.demand_slots;
  staging.prefetch_slots = options_.prefetch_slots;
  staging.tail_cache_bytes_max = 0;
  PF_ASSIGN(PageReadMemory memory, PageReadMemory::make(staging));
  const auto check = [](PageRun run, std::span<const std::byte>, Result<void> transfer,
                        unsigned attempts) -> Result<void> {
    if (transfer) return {};
    return with_context(transfer.error(),
                        fmt::format("page {} (file offset {}), after {} reads", raw(run.first),
                                    bytes_of_pages(raw(run.first)), attempts));
  };
  PF_ASSIGN(reads_,
            RetriedReads::make(*file_, {std::move(memory.demand), std::move(memory.prefetch)},
                               {options_.attempts, options_.retry_delay}, clock_, check));
  return {};
}

MemoryFileReader::~MemoryFileReader() {
  const MonotonicClock real_clock;
  const WaitBounds bounds{nullptr, Deadline::after(real_clock, Seconds(1))};
  std::vector<IoDone> done;
  while (file_->in_flight() > 0 && wait_for_completions(*file_, bounds, done)) done.clear();
  if (file_->in_flight() > 0) reads_->abandon();
}

PageRun MemoryFileReader::contiguous_run(PageIndex page, std::uint64_t pages_max) const {
  PF_CHECK(!is_zero(page));
  const std::uint64_t most =
      std::min({pages_max, layout_.pages() - raw(page), pages_of_bytes(options_.read_bytes_max)});
  std::uint64_t pages = 1;
  while (pages < most && !is_zero(page + pages)) ++pages;
  return {.first = page, .pages = pages};
}

Result<std::uint64_t> MemoryFileReader::start_read(PageRun run, ReadClass read_class) {
  PF_CHECK(run.pages > 0 && raw(run.first) < layout_.pages());
  if (contiguous_run(run.first, run.pages).pages != run.pages) {
    return fail(Errc::invalid, fmt::format("{}: {} pages from page {} do not lie together",
                                           file_->name(), run.pages, raw(run.first)));
  }
  return reads_->start(run, read_class, {*file_, bytes_of_pages(raw(run.first))});
}

std::vector<ReadDone> MemoryFileReader::poll() {
  std::vector<ReadDone> done;
  std::vector<IoDone> finished;
  file_->reap(finished);
  for (IoDone& one : finished) reads_->note_done(std::move(one), done);
  reads_->finish_turn(done);
  return done;
}

}  // namespace pageferry
