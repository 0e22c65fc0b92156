// BackingTransfer: one backing page larger than a page (2 MiB hugetlb, say) on its way to the
// destination, which accepts its pages only all of them, ascending, with no other page in between.
// Reads may finish in any order; pages are handed out in order, so that no buffer for the whole is
// needed.
//
// Pure: knows no supply and no channel. Thread rule: one thread.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "pager/page.h"
#include "pager/page_piece.h"

namespace pageferry {

class BackingTransfer {
 public:
  explicit BackingTransfer(PageRun unit) : unit_(unit), planned_to_(unit.first) {}

  const PageRun& unit() const { return unit_; }
  bool holds(PageIndex page) const {
    return raw(page) >= raw(unit_.first) && page - unit_.first < unit_.pages;
  }

  // The pages that no read and no zero run covers yet; pages == 0 when all are planned.
  PageRun unplanned() const {
    return {.first = planned_to_, .pages = unit_.pages - (planned_to_ - unit_.first)};
  }
  // Covers the next `pages` pages: they are zero, or a read of them is (about to be) under way.
  void plan_zeros(std::uint64_t pages);
  void plan_read(std::uint64_t pages);
  unsigned reads_pending() const { return reads_pending_; }

  // The pages of a planned read are here. Precondition: piece.run is a planned read.
  void arrived(PagePiece piece);
  // A planned read failed and is tried again page by page: each page is now a planned read of its
  // own.
  void split_read(PageRun run);
  // A planned read failed for good: the transfer is spoiled, and nothing more of it leaves. Result: the pages in hand, which nobody needs.
  std::vector<PagePiece> fail_read(PageRun run);
  bool spoiled() const { return spoiled_; }
  // Of a spoiled one: another planned read has ended, in whichever way; the pages that have left.
  void forget_read(PageRun run);
  PageRun sent_run() const { return {.first = unit_.first, .pages = sent_pages_}; }

  // The next pages to send, or nullptr while they are not here. Call sent() for as many as left.
  const PagePiece* front() const;
  void sent(std::uint64_t pages);
  // A page has left: nothing else may use the channel before finished().
  bool started() const { return sent_pages_ > 0; }
  bool finished() const { return sent_pages_ == unit_.pages; }

 private:
  struct Slot {
    PagePiece piece{};
    enum class State : std::uint8_t { reading, here } state = State::reading;
  };
  std::deque<Slot>::iterator find(PageRun run);
  void push(std::uint64_t pages, Slot::State state);

  PageRun unit_;
  PageIndex planned_to_;
  std::uint64_t sent_pages_ = 0;
  unsigned reads_pending_ = 0;
  bool spoiled_ = false;
  std::deque<Slot> slots_;  // ascending, without gaps, from the first unsent page to planned_to_
};

}  // namespace pageferry
