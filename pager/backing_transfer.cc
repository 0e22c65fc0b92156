// A row of slots, ascending and without gaps; each is one zero run or one read. The front leaves
// when it is here.
#include "pager/backing_transfer.h"

#include <algorithm>
#include <utility>

#include "transport/os/error.h"

namespace pageferry {

void BackingTransfer::push(std::uint64_t pages, Slot::State state) {
  PF_CHECK(pages > 0 && pages <= unplanned().pages);
  slots_.push_back({.piece = {.run = {.first = planned_to_, .pages = pages}}, .state = state});
  planned_to_ = planned_to_ + pages;
}

void BackingTransfer::plan_zeros(std::uint64_t pages) {
  push(pages, Slot::State::here);
}

void BackingTransfer::plan_read(std::uint64_t pages) {
  push(pages, Slot::State::reading);
  ++reads_pending_;
}

std::deque<BackingTransfer::Slot>::iterator BackingTransfer::find(PageRun run) {
  const auto slot = std::find_if(slots_.begin(), slots_.end(), [&run](const Slot& candidate) {
    return candidate.piece.run == run && candidate.state == Slot::State::reading;
  });
  PF_CHECK(slot != slots_.end());
  return slot;
}

void BackingTransfer::arrived(PagePiece piece) {
  const auto slot = find(piece.run);
  slot->piece = piece;
  slot->state = Slot::State::here;
  --reads_pending_;
}

void BackingTransfer::split_read(PageRun run) {
  const auto slot = find(run);
  std::deque<Slot> singles;
  for (std::uint64_t i = 0; i < run.pages; ++i) {
    singles.push_back({.piece = {.run = {.first = run.first + i, .pages = 1}}});
  }
  slots_.insert(slots_.erase(slot), singles.begin(), singles.end());
  reads_pending_ += static_cast<unsigned>(run.pages) - 1;
}

void BackingTransfer::forget_read(PageRun run) {
  slots_.erase(find(run));
  --reads_pending_;
}

std::vector<PagePiece> BackingTransfer::fail_read(PageRun run) {
  forget_read(run);
  spoiled_ = true;
  std::vector<PagePiece> in_hand;
  for (const Slot& slot : slots_) {
    if (slot.state == Slot::State::here && !slot.piece.zero()) in_hand.push_back(slot.piece);
  }
  std::erase_if(slots_, [](const Slot& slot) { return slot.state == Slot::State::here; });
  return in_hand;
}

const PagePiece* BackingTransfer::front() const {
  if (spoiled_) return nullptr;
  if (slots_.empty() || slots_.front().state != Slot::State::here) return nullptr;
  return &slots_.front().piece;
}

void BackingTransfer::sent(std::uint64_t pages) {
  PF_CHECK(front() != nullptr && pages <= front()->run.pages);
  slots_.front().piece.drop_front(pages);
  if (slots_.front().piece.run.pages == 0) slots_.pop_front();
  sent_pages_ += pages;
}

}  // namespace pageferry
