// PageFileReader: the PageSupply over a committed page file, and the bases that it left pages in. Reads are asynchronous, every page is
// checked before it is handed out, and what fails is read again a bounded number of times.
//
// Demand and prefetch have slots of their own, so that prefetch can never use up what a demand read
// needs, and go to the store with their own I/O priority. How much prefetch is in flight is the
// caller's to bound (libaio cannot reorder).
//
// A read that failed for good reports its whole run; the message names the RAM block, the offset in
// it and the offset in the file of the first bad page. A caller that wants the good pages of that
// run reads them singly.
//
// Thread rule: one thread. Lifetime: the clock outlives the reader. Destroying a reader whose store
// hangs takes as long as the file's close_wait, then leaks the buffers that the store may still
// write to.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pager/page_file_bases.h"
#include "pager/page_file_image.h"
#include "pager/page_map_preload.h"
#include "pager/page_read_memory.h"
#include "pager/page_supply.h"
#include "pager/retried_reads.h"
#include "pager/tail_cache.h"
#include "transport/os/clock.h"
#include "transport/storage_file.h"

namespace pageferry {

struct PageFileReaderOptions {
  std::size_t read_bytes_max = std::size_t{256}
                               << 10;  // longest run of one read; a multiple of the page size
  unsigned demand_slots = 32;
  unsigned prefetch_slots = 24;  // staging memory: slots * read_bytes_max
  unsigned attempts = 4;         // reads of one run before it is given up
  Milliseconds retry_delay{2};   // before the second attempt; four times as long each time
  std::uint64_t map_bytes_max = std::uint64_t{16} << 30;  // a guest of 4 TiB
  std::uint64_t tail_cache_bytes_max = std::uint64_t{32}
                                       << 20;  // 0: the tail is read like the rest
};

struct PageFileReaderStats {
  std::uint64_t reads = 0;
  std::uint64_t bytes = 0;
  std::uint64_t checksum_failures = 0;  // first or later attempts
  std::uint64_t io_failures = 0;
  std::uint64_t given_up = 0;
  std::uint64_t from_tail_cache = 0;  // reads that needed none
};

// What can be done before the file is committed.
struct PageReadPreparation {
  PageMapPreload map{};
  PageReadMemory memory{};  // empty: made when the file is opened
};

class PageFileReader final : public PageSupply {
 public:
  // `file`, and what `open_base` opens: queue_depth of at least demand_slots + prefetch_slots. Loads the
  // image (PageFileImage::load) and opens its bases (PageFileBases::open), waiting for the store no
  // longer than the bounds say.
  static Result<std::unique_ptr<PageFileReader>> open(std::unique_ptr<StorageFile> file,
                                                      const PageFileReaderOptions& options,
                                                      const Clock& clock, const WaitBounds& bounds,
                                                      PageReadPreparation prepared = {},
                                                      const BaseFileOpener& open_base = {});
  ~PageFileReader() override;

  const CommitRecord& record() const { return image_.record; }
  const PageFileHeader& header() const { return image_.header; }
  PageFileReaderStats stats() const;

  const MemoryLayout& layout() const override { return image_.layout; }
  bool is_zero(PageIndex page) const override { return image_.map.get(page).is_zero(); }
  std::uint32_t version(PageIndex page) const override { return image_.map.get(page).version; }
  std::span<const PageIndex> recent_pages() const override { return image_.tail_pages; }
  // Also ends at the end of a RAM block and at read_bytes_max.
  PageRun contiguous_run(PageIndex page, std::uint64_t pages_max) const override;
  // Errc::invalid: not a run that lies together in the file, or longer than read_bytes_max.
  Result<std::uint64_t> start_read(PageRun run, ReadClass read_class) override;
  int ready_fd() const override { return reads_->ready_fd(); }
  std::vector<ReadDone> poll() override;
  void release(std::uint64_t ticket) override { reads_->release(ticket); }

 private:
  PageFileReader(std::unique_ptr<StorageFile> file, PageFileImage image, PageFileBases bases,
                 const PageFileReaderOptions& options, const Clock& clock);
  Result<void> set_up(PageReadMemory memory);
  // The file that holds the bytes of a page with this entry.
  StorageFile& file_of(const MapEntry& entry) const {
    return entry.base() == 0 ? *file_ : bases_.file(entry.base());
  }
  bool wait_for_all(const WaitBounds& bounds);
  // The run's bytes in the tail cache, proved.
  std::optional<std::span<const std::byte>> find_in_tail(PageRun run) const;
  Result<void> check_pages(PageRun run, std::span<const std::byte> bytes, unsigned attempts) const;
  std::string describe(PageIndex page) const;
  // What becomes of a read: its bytes are proved, or its error says where they lie.
  Result<void> judge(PageRun run, std::span<const std::byte> bytes, Result<void> transfer,
                     unsigned attempts);

  PageFileReaderOptions options_;
  const Clock& clock_;
  PageFileImage image_;
  std::unique_ptr<RetriedReads> reads_;
  TailCache tail_;
  std::unique_ptr<StorageFile> file_;  // this and the bases: destroyed before the buffers
  PageFileBases bases_;
  std::vector<IoDone> io_done_;
  PageFileReaderStats stats_;  // without what reads_ counts
};

}  // namespace pageferry
