// MemoryFileReader: the PageSupply over a plain memory file, as VMMs save guest memory: page n lies at n pages from its beginning, and
// there is nothing else in it. So there is nothing to prove a page with: what the storage returns is believed. A read that fails or is
// short is tried again a bounded number of times, and its page is never handed out when it fails for good.
//
// Holes of a sparse file are zero pages, and are not read.
//
// Thread rule: one thread. Lifetime: the clock outlives it. The file must not change meanwhile.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pager/page_supply.h"
#include "pager/retried_reads.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "transport/storage_file.h"

namespace pageferry {

struct MemoryFileReaderOptions {
  std::size_t read_bytes_max = std::size_t{256} << 10;  // of one read; a multiple of the page size
  unsigned demand_slots = 32;
  unsigned prefetch_slots = 24;  // staging memory: slots * read_bytes_max
  unsigned attempts = 4;         // reads of one run before it is given up
  Milliseconds retry_delay{2};   // before the second attempt; four times as long each time
};

// The holes of a file that is open for reading, as runs of whole pages, ascending, inside its first `pages` pages. Empty where the file
// system knows of none. Of a file with very many, those in front.
Result<std::vector<PageRun>> find_holes(const UniqueFd& file, std::uint64_t pages,
                                        const std::string& name);

class MemoryFileReader final : public PageSupply {
 public:
  // `file`: queue_depth of at least demand_slots + prefetch_slots. `holes`: of find_holes().
  // Errors: invalid (empty, too large, or no whole number of pages), io.
  static Result<std::unique_ptr<MemoryFileReader>> open(std::unique_ptr<StorageFile> file,
                                                        const std::vector<PageRun>& holes,
                                                        const MemoryFileReaderOptions& options,
                                                        const Clock& clock);
  ~MemoryFileReader() override;

  // One block, "memory": the file.
  const MemoryLayout& layout() const override { return layout_; }
  bool is_zero(PageIndex page) const override { return holes_[raw(page)]; }
  std::uint32_t version(PageIndex page) const override { return is_zero(page) ? 0 : 1; }
  PageRun contiguous_run(PageIndex page, std::uint64_t pages_max) const override;
  Result<std::uint64_t> start_read(PageRun run, ReadClass read_class) override;
  int ready_fd() const override { return reads_->ready_fd(); }
  std::vector<ReadDone> poll() override;
  void release(std::uint64_t ticket) override { reads_->release(ticket); }

 private:
  MemoryFileReader(std::unique_ptr<StorageFile> file, MemoryLayout layout,
                   const MemoryFileReaderOptions& options, const Clock& clock);
  Result<void> set_up();

  MemoryFileReaderOptions options_;
  const Clock& clock_;
  MemoryLayout layout_;
  std::vector<bool> holes_;  // by page
  std::unique_ptr<RetriedReads> reads_;
  std::unique_ptr<StorageFile> file_;  // destroyed before the buffers
};

}  // namespace pageferry
