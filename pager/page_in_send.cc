// The channel side of PageIn: what leaves next on which channel.
//
//   urgent:      a backing page that has begun (I4), demanded pages, pages around them, the next
//   backing page background:  a backing page that has begun, prefetched pages, the next backing
//   page
//
// With one channel both rows follow each other on it.
#include <utility>

#include "pager/page_in.h"

namespace pageferry {

Result<void> PageIn::send() {
  const bool one = options_.channels == ChannelCount::one;
  const PageChannel first = one ? PageChannel::background : PageChannel::urgent;
  // A backing page that has begun blocks its channel until it is complete; with one channel, both
  // rows.
  Progress urgent = Progress::drained;
  if (transfer_on(first) && transfer_on(first)->started()) {
    PF_ASSIGN(urgent, send_transfer(first));
  }
  for (Queue* queue : {&demanded_, &around_}) {
    if (urgent == Progress::stuck) break;
    PF_ASSIGN(urgent, send_queue(first, *queue));
  }
  if (!one && urgent == Progress::drained && urgent_transfer_) {
    PF_ASSIGN(urgent, send_transfer(first));
  }
  if (one && urgent == Progress::stuck) return {};

  Progress background = Progress::drained;
  if (background_transfer_ && background_transfer_->started()) {
    PF_ASSIGN(background, send_transfer(PageChannel::background));
  }
  if (background == Progress::drained) {
    PF_ASSIGN(background, send_queue(PageChannel::background, background_));
  }
  if (background == Progress::drained && background_transfer_) {
    PF_ASSIGN(background, send_transfer(PageChannel::background));
  }
  return {};
}

// Sends from the front until the queue is empty (drained) or the channel is full (stuck).
Result<PageIn::Progress> PageIn::send_queue(PageChannel channel, Queue& queue) {
  while (!queue.empty()) {
    PagePiece& piece = queue.front();
    PF_ASSIGN(const std::uint64_t taken, put(channel, piece));
    if (taken == 0) return Progress::stuck;
    if (&queue == &background_) background_pages_ -= taken;
    piece.drop_front(taken);
    if (piece.run.pages == 0) queue.pop_front();
  }
  return Progress::drained;
}

// The same for the backing page on a channel; drained means that it is complete. Stuck also while
// its next page is read.
Result<PageIn::Progress> PageIn::send_transfer(PageChannel channel) {
  std::optional<BackingTransfer>& transfer = transfer_on(channel);
  while (const PagePiece* piece = transfer->front()) {
    PF_ASSIGN(const std::uint64_t taken, put(channel, *piece));
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
