// A bitmap; the runs that are asked about are short.
#include "pager/removed_pages.h"

#include "transport/os/error.h"

namespace pageferry {

void RemovedPages::add(PageRun run) {
  PF_CHECK(run.pages <= removed_.size() && raw(run.first) <= removed_.size() - run.pages);
  for (std::uint64_t page = raw(run.first); page < raw(run.first) + run.pages; ++page) {
    if (removed_[page]) continue;
    removed_[page] = true;
    ++count_;
  }
}

std::uint64_t RemovedPages::alike(PageRun run) const {
  std::uint64_t pages = 1;
  while (pages < run.pages && has(run.first + pages) == has(run.first)) ++pages;
  return pages;
}

}  // namespace pageferry
