// RemovedPages: which pages of its guest a VMM has given back to its host (a balloon, UFFD_EVENT_REMOVE) since it was restored. Whatever a
// snapshot holds of such a page, its content is zero until the guest writes to it, and the snapshot is never looked at again for it. So a
// page that is in here stays in here.
//
// One bit a page. Nothing can tell it again when it is lost: it dies with the pager.
//
// Thread rule: one thread, the loop's; count() from any.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "pager/page.h"

namespace pageferry {

class RemovedPages {
 public:
  explicit RemovedPages(std::uint64_t pages) : removed_(pages) {}

  // Precondition for all below: the pages lie inside.
  void add(PageRun run);
  bool has(PageIndex page) const { return removed_[raw(page)]; }
  // How many pages from the first of `run` on are like it: all removed, or none of them. At least 1, at most run.pages.
  std::uint64_t alike(PageRun run) const;
  // Different pages that were removed.
  std::uint64_t count() const { return count_; }

 private:
  std::vector<bool> removed_;
  std::atomic<std::uint64_t> count_{0};
};

}  // namespace pageferry
