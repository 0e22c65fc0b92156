// RemovalReports: pages that a VMM gives back to its host without its userfaultfd saying so, or says twice to be sure: an interface to
// wherever the VMM tells it (a bitmap in memory that both share).
//
// UFFD_EVENT_REMOVE alone does not do: making a hole in a memory file sends none, and one that was read by a pager which then died is
// lost. What is in here is not: the first take() of a new pager gets everything that was ever reported.
//
//   VMM:   report it --> remove it (madvise, a hole)          the order in which nothing can go wrong
//   pager: take() --> place pages --> take()                  what the second one brings and was just placed: remove_again()
//
// Thread rule: the functions are called on the page-in loop's thread; they must not block.
#pragma once

#include <vector>

#include "pager/page.h"

namespace pageferry {

class RemovalReports {
 public:
  virtual ~RemovalReports() = default;

  // Appends what was reported since the last call. Asked around each placing: it should cost no more than a look at a counter when there
  // is nothing. The runs were checked by the implementation: they lie inside the layout. May name pages again.
  virtual void take(std::vector<PageRun>& removed) = 0;

  // The userfaultfd told of this removal. To be kept for a pager that comes later.
  virtual void keep(PageRun removed) = 0;

  // Pages of this run were placed while they were being reported: they may hold what was there before. Whoever can reach the memory
  // removes them again.
  virtual void remove_again(PageRun placed) = 0;
};

}  // namespace pageferry
