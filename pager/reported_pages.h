// ReportedPages: the pages that were reported by hand, from any thread: a device thread of the VMM has written to them, or made
// a hole. A bitmap of atomic words, so that a device thread never waits for a collection of hundreds of milliseconds.
//
// The writer writes, then marks; the collector takes the mark, then reads the page. Both steps on a word are one atomic
// read-modify-write each, so of two that meet, one is first: either the collector has the mark, and sees what was written
// before it, or the mark stands for the next collection. For that a mark is made even where the bit is set already; a plain
// look at the bit beforehand could pass the write that is still on its way out of the processor.
//
// Thread rule: mark() any thread; take_into() one thread. Neither blocks.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "pager/dirty_bitmap.h"
#include "pager/page.h"

namespace pageferry {

class ReportedPages {
 public:
  explicit ReportedPages(std::uint64_t pages);

  std::uint64_t pages() const { return pages_; }
  // Precondition: the pages lie inside (checked).
  void mark(PageRun run);
  void mark_all() { mark({PageIndex{0}, pages_}); }
  // Moves all marks into `dirty`. Precondition: the same number of pages (checked).
  void take_into(DirtyBitmap& dirty) { take_into(dirty, {PageIndex{0}, pages_}); }
  // The same for the marks of one run.
  void take_into(DirtyBitmap& dirty, PageRun run);

 private:
  std::uint64_t pages_;
  std::vector<std::atomic<std::uint64_t>> words_;
};

}  // namespace pageferry
