// ListeningOutlet: a UserfaultOutlet that listens while it works. Where the VMM reads its userfaultfd too (QEMU's postcopy does), a
// fault is told to whoever reads first: to us it comes at once, through the VMM it comes as a message from a thread that had to be
// woken, had to run, perhaps on the CPU that we use, and makes us read a socket (measured with QEMU 10: of 210 faults in the first 300
// ms four fifths came that way, some 80 us later each, with four switches of threads more).
//
// So prefetched pages are placed a few at a time, and between two such pieces the userfaultfd is read. When a fault was heard, nothing
// prefetched is taken until the caller has fetched it.
//
// Thread rule: one thread, the restore loop's. Lifetime: the outlet outlives it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pager/page_outlet.h"
#include "pager/userfault_outlet.h"
#include "transport/os/error.h"

namespace pageferry {

class ListeningOutlet final : public PageOutlet {
 public:
  explicit ListeningOutlet(UserfaultOutlet& placing) : placing_(&placing) {}

  // Appends the pages that somebody began to wait for, also those that were heard while pages were placed. Never blocks.
  // Errors: as UserfaultOutlet::read_faults.
  Result<void> read_faults(std::vector<PageRun>& faults);
  // Faults wait to be fetched: prefetched pages are not taken.
  bool has_heard() const { return !heard_.empty(); }

  Result<std::uint64_t> put_pages(PageChannel channel, PageRun run,
                                  std::span<const std::byte> bytes) override;
  Result<std::uint64_t> put_zeros(PageChannel channel, PageRun run) override;
  void forget_begun(PageChannel channel) override { placing_->forget_begun(channel); }

 private:
  template <typename Put>
  Result<std::uint64_t> put(PageChannel channel, PageRun run, std::uint64_t piece_pages,
                            Put put_piece);

  UserfaultOutlet* placing_;
  std::vector<PageRun> heard_;
};

}  // namespace pageferry
