// The channel side of PageIn: what leaves next on which channel.
//
//   urgent       a backing page that has begun (I4), demanded pages, pages around them, a wanted
//                backing page
//   background   a backing page that has begun, prefetched pages, the next backing page
//
// With one channel both rows follow each other on it.
#include <algorithm>
#include <limits>
#include <utility>

#include "pager/page_in.h"

namespace pageferry {
namespace {

constexpr std::uint64_t kNoBudget = std::numeric_limits<std::uint64_t>::max();
// One step's share of background work: 32 stored pages keep the thread busy for some 60 us.
constexpr std::uint64_t kStoredPageCost = 4;
constexpr std::uint64_t kZeroPageCost = 1;
constexpr std::uint64_t kBackgroundBudget = 32 * kStoredPageCost;
// The same while somebody waits: his page may be here any moment.
constexpr std::uint64_t kBackgroundBudgetInFaults = 8 * kStoredPageCost;

}  // namespace

Result<PageIn::Progress> PageIn::send_urgent() {
  const PageChannel channel =
      options_.channels == ChannelCount::one ? PageChannel::background : PageChannel::urgent;
  const std::optional<BackingTransfer>& transfer = transfer_on(channel);
  Progress progress = Progress::drained;
  std::uint64_t budget = kNoBudget;
  if (transfer && transfer->started()) {
    PF_ASSIGN(progress, send_transfer(channel, budget));
  }
  for (Queue* queue : {&demanded_, &around_}) {
    if (progress == Progress::stuck) return progress;
    PF_ASSIGN(progress, send_queue(channel, *queue, budget));
  }
  if (progress == Progress::stuck) return progress;
  // A wanted backing page (also one that is read again with nobody waiting), and one that prefetch had begun on the other channel.
  if (wanted(transfer) || (urgent_transfer_ && &transfer == &urgent_transfer_)) {
    PF_ASSIGN(progress, send_transfer(channel, budget));
  }
  if (wanted(background_transfer_)) {
    PF_TRY(send_transfer(PageChannel::background, budget));
  }
  return progress;
}

bool PageIn::wanted(const std::optional<BackingTransfer>& transfer) const {
  return transfer && open_faults_.contains(raw(transfer->unit().first));
}

Result<void> PageIn::send_background() {
  const PageChannel channel = PageChannel::background;
  Progress progress = Progress::drained;
  const std::uint64_t share = open_faults_.empty() ? kBackgroundBudget : kBackgroundBudgetInFaults;
  std::uint64_t budget = share;
  if (background_transfer_ && background_transfer_->started()) {
    PF_ASSIGN(progress, send_transfer(channel, budget));
  }
  if (progress == Progress::drained) {
    PF_ASSIGN(progress, send_queue(channel, background_, budget));
  }
  if (progress == Progress::drained && background_transfer_) {
    PF_ASSIGN(progress, send_transfer(channel, budget));
  }
  // More, and what prefetch may start in the room that was made, comes after a look at requests.
  if (budget < share) wants_step_ = true;
  return {};
}

// Hands over pages from the front of a piece within the budget: a zero page costs the destination about a quarter of another.
// Result: how many are gone.
Result<std::uint64_t> PageIn::put_some(PageChannel channel, const PagePiece& piece,
                                       std::uint64_t& budget) {
  const std::uint64_t cost = piece.zero() ? kZeroPageCost : kStoredPageCost;
  const std::uint64_t most = std::min(piece.run.pages, budget / cost);
  if (most == 0) {
    budget = 0;
    return 0;
  }
  PF_ASSIGN(const std::uint64_t taken, put(channel, piece.part(0, most)));
  if (budget != kNoBudget) budget -= taken * cost;
  return taken;
}

// Sends from the front until the queue is empty (drained) or the channel is full or the budget spent (stuck).
Result<PageIn::Progress> PageIn::send_queue(PageChannel channel, Queue& queue,
                                            std::uint64_t& budget) {
  while (!queue.empty()) {
    PagePiece& piece = queue.front();
    PF_ASSIGN(const std::uint64_t taken, put_some(channel, piece, budget));
    if (taken == 0) return Progress::stuck;
    if (&queue == &background_) background_pages_ -= taken;
    piece.drop_front(taken);
    if (piece.run.pages == 0) queue.pop_front();
  }
  return Progress::drained;
}

// The same for the backing page on a channel; drained means that it is complete. Stuck also while its next page is read.
Result<PageIn::Progress> PageIn::send_transfer(PageChannel channel, std::uint64_t& budget) {
  std::optional<BackingTransfer>& transfer = transfer_on(channel);
  while (const PagePiece* piece = transfer->front()) {
    PF_ASSIGN(const std::uint64_t taken, put_some(channel, *piece, budget));
    if (taken == 0) return Progress::stuck;
    transfer->sent(taken);
  }
  if (!transfer->finished()) return Progress::stuck;
  transfer.reset();
  wants_step_ = true;  // the channel is free for the next one
  return Progress::drained;
}

Result<std::uint64_t> PageIn::put(PageChannel channel, const PagePiece& piece) {
  auto taken = piece.zero() ? outlet_->put_zeros(channel, piece.run)
                            : outlet_->put_pages(channel, piece.run, piece.bytes);
  if (!taken) return taken;
  PF_CHECK(*taken <= piece.run.pages);
  if (*taken == 0) return taken;
  const PageRun gone{.first = piece.run.first, .pages = *taken};
  sent_.mark_sent(gone);
  if (piece.zero()) {
    counters_.pages_zero += *taken;
  } else {
    tickets_.drop(piece.ticket, *taken);
  }
  settle(gone);
  return taken;
}

// Counts pages that have left, and answers the faults that waited for them. A fault on a backing
// page is answered when the last page of it has left.
void PageIn::settle(PageRun run) {
  std::uint64_t demanded = 0;
  for (std::uint64_t i = 0; i < run.pages && !open_faults_.empty(); ++i) {
    const PageIndex page = run.first + i;
    const auto unit = backing_of(page);
    if (unit && page != unit->first + (unit->pages - 1)) continue;
    const auto fault = open_faults_.find(raw(unit ? unit->first : page));
    if (fault == open_faults_.end()) continue;
    const Nanoseconds now = clock_->now();
    const Nanoseconds latency = now - fault->second;
    fault_latency_.record(latency);
    window_.note_fault_served(now, latency);
    open_faults_.erase(fault);
    ++demanded;
  }
  counters_.pages_demand += demanded;
  counters_.pages_prefetched += run.pages - demanded;
}

}  // namespace pageferry
