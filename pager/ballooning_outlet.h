// BallooningOutlet: a UserfaultOutlet into a VMM that also gives memory back while it is restored (Firecracker's balloon): what was given
// back is zero afterwards, and nothing older ever gets there.
//
//   VMM: RemovalReports ------------------------------------------------------------+   (asked before and after each placing)
//                                                                                   v
//   balloon: madvise(MADV_DONTNEED) --> kernel: REMOVE, the caller waits until it is read; until then every placing is refused (EAGAIN)
//                                         |
//            hear(): all that can be read +--> RemovedPages (never taken back), whoever waits there is woken and asks again
//
//   pages from PageIn      removed: dropped, as if placed. A balloon that was blown up would not want its memory filled.
//                          else: UserfaultOutlet
//   a fault                removed: a zero page, at once. Else: PageIn's to bring
//
// Why nothing old can slip in: a page is placed only while no REMOVE is unread (the kernel sees to that), and what was read is in
// RemovedPages before the next placing. Bytes that were read from the file before, or are on their way, meet the same test.
//
// A page that was placed, or found there, and is missing again was removed without a word: zeros too.
//
// What is refused because of an unread REMOVE is not tried again in here: it is given back to PageIn, and should be tried soon (held()). So
// a VMM that never ceases to remove pages keeps nobody in a loop.
//
// Thread rule: one thread, the loop's; zeros_placed() from any. Lifetime: both others outlive it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "pager/page_outlet.h"
#include "pager/removal_reports.h"
#include "pager/removed_pages.h"
#include "pager/userfault_outlet.h"
#include "transport/os/error.h"

namespace pageferry {

class BallooningOutlet final : public PageOutlet {
 public:
  // `placing`: made with WhenChanging::give_back. `reports`: may be null.
  BallooningOutlet(UserfaultOutlet& placing, RemovedPages& removed,
                   RemovalReports* reports = nullptr)
      : placing_(&placing), removed_(&removed), reports_(reports) {}

  // Whether a page was brought before.
  using IsThere = std::function<bool(PageIndex)>;
  // Hears everything; appends the faults that PageIn has to answer. Others are answered with zeros, as far as that can be done now.
  // Errors: as UserfaultOutlet.
  Result<void> read_faults(std::vector<PageRun>& faults, const IsThere& is_there = {});
  // Something was refused since the last read_faults(): soon again, though nothing happens.
  bool held() const { return held_; }
  std::uint64_t zeros_placed() const { return zeros_placed_; }

  Result<std::uint64_t> put_pages(PageChannel channel, PageRun run,
                                  std::span<const std::byte> bytes) override;
  Result<std::uint64_t> put_zeros(PageChannel channel, PageRun run) override;
  void forget_begun(PageChannel channel) override { placing_->forget_begun(channel); }
  // As UserfaultOutlet; pages that were removed are dropped.
  Result<UserfaultOutlet::Poison> poison(PageRun run);

 private:
  template <typename Put>
  Result<std::uint64_t> put(PageChannel channel, PageRun run, Put put_kept);
  Result<void> hear();
  Result<void> take_reports();
  Result<void> check_placed(PageRun placed);

  UserfaultOutlet* placing_;
  RemovedPages* removed_;
  RemovalReports* reports_;
  std::vector<PageRun> reported_;  // since take_reports() was called last
  UserfaultEvents heard_;          // faults that nobody has looked at yet
  bool held_ = false;
  std::atomic<std::uint64_t> zeros_placed_{0};  // backing pages, for faults on removed ones
};

}  // namespace pageferry
