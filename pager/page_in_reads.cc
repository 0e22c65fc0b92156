// The storage side of PageIn: starting reads, taking finished ones, and what prefetch may start.
//
// A read of several pages that fails says nothing about each of them: it is tried again page by
// page, and only a page that fails alone is given up (I5).
#include <algorithm>
#include <utility>

#include "pager/page_in.h"

namespace pageferry {
namespace {

// Prefetched, waiting for the channel: at least so much may be, and two windows where that is more. With less than a window, reads that
// are done together would stop the next ones until they have left, and the store would rest meanwhile. Not before the guest runs, nor just
// after: the more there is to place, the later it finds its first pages.
constexpr std::uint64_t kReadyBytesMax = std::uint64_t{512} << 10;
constexpr std::uint64_t kReadyWindows = 2;
constexpr std::uint64_t kRunPagesInFaults = 32;
constexpr unsigned kTransferReadsMax = 4;  // of one backing page, under way

}  // namespace

std::deque<PageIn::Read>& PageIn::waiting_for(Purpose purpose) {
  switch (purpose) {
    case Purpose::demand:
      return demand_reads_;
    case Purpose::around:
      return around_reads_;
    case Purpose::prefetch:
      break;
  }
  return prefetch_reads_;
}

// Starts what waits for a slot at the supply, in order, until it is busy.
void PageIn::start_waiting(std::deque<Read>& reads) {
  while (!reads.empty() && try_start(reads.front())) reads.pop_front();
}

// False when the supply has no slot now.
bool PageIn::try_start(Read& read) {
  const ReadClass read_class =
      read.purpose == Purpose::demand ? ReadClass::demand : ReadClass::prefetch;
  const auto ticket = supply_->start_read(read.run, read_class);
  if (!ticket) {
    if (ticket.error().code == Errc::busy) return false;
    take_failed(std::move(read), ticket.error());
    return true;
  }
  if (read.purpose == Purpose::prefetch) prefetch_pages_reading_ += read.run.pages;
  read.started_at = clock_->now();
  reads_.emplace(*ticket, std::move(read));
  return true;
}

void PageIn::collect() {
  for (ReadDone& done : supply_->poll()) {
    const auto entry = reads_.find(done.ticket);
    PF_CHECK(entry != reads_.end());
    Read read = std::move(entry->second);
    reads_.erase(entry);
    if (read.purpose == Purpose::prefetch) {
      prefetch_pages_reading_ -= read.run.pages;
      const Nanoseconds now = clock_->now();
      window_.note_read(now, now - read.started_at);
    }
    if (!done.bytes) {
      supply_->release(done.ticket);
      take_failed(std::move(read), done.bytes.error());
      continue;
    }
    PF_CHECK(done.bytes->size() == bytes_of_pages(read.run.pages));
    tickets_.add(done.ticket, read.run.pages);
    const PagePiece piece{.run = read.run, .bytes = *done.bytes, .ticket = done.ticket};
    take_done(read, piece);
  }
}

void PageIn::take_done(const Read& read, PagePiece piece) {
  if (BackingTransfer* transfer = transfer_holding(read.run.first)) {
    if (!transfer->spoiled()) return transfer->arrived(piece);
    transfer->forget_read(piece.run);
    tickets_.drop(piece.ticket, piece.run.pages);
    wants_step_ = true;
    return;
  }
  if (read.purpose == Purpose::prefetch) {
    background_.push_back(piece);
    background_pages_ += piece.run.pages;
  } else {
    around_.push_back(piece);
  }
  Queue& queue = read.purpose == Purpose::prefetch ? background_ : around_;
  for (const PageIndex page : read.wanted) PF_CHECK(promote_in(queue, page));
}

void PageIn::take_failed(Read read, const Error& error) {
  if (read.run.pages > 1) {
    if (BackingTransfer* transfer = transfer_holding(read.run.first)) {
      transfer->split_read(read.run);
    }
    std::deque<Read>& queue = waiting_for(read.purpose);
    for (std::uint64_t i = 0; i < read.run.pages; ++i) {
      const PageIndex page = read.run.first + i;
      Read single{.run = {.first = page, .pages = 1}, .purpose = read.purpose};
      if (std::find(read.wanted.begin(), read.wanted.end(), page) != read.wanted.end()) {
        single.wanted.push_back(page);
      }
      queue.push_back(std::move(single));
    }
    wants_step_ = true;
    return;
  }
  if (options_.unproved == UnprovedPages::set_aside) {
    return set_aside(read.run.first, unproved_error(read.run.first, error));
  }
  if (!failure_) failure_ = unproved_error(read.run.first, error);
}

BackingTransfer* PageIn::transfer_holding(PageIndex page) {
  if (urgent_transfer_ && urgent_transfer_->holds(page)) return &*urgent_transfer_;
  if (background_transfer_ && background_transfer_->holds(page)) return &*background_transfer_;
  return nullptr;
}

std::optional<BackingTransfer>& PageIn::transfer_on(PageChannel channel) {
  const bool urgent = channel == PageChannel::urgent && options_.channels == ChannelCount::two;
  return urgent ? urgent_transfer_ : background_transfer_;
}

// Gives free channels their next backing page, wanted ones first, and keeps the reads of those on
// their way going.
void PageIn::activate_transfers() {
  for (const PageChannel channel : {PageChannel::urgent, PageChannel::background}) {
    std::optional<BackingTransfer>& transfer = transfer_on(channel);
    if (!transfer && channel == PageChannel::urgent && !backing_wanted_.empty()) {
      transfer.emplace(backing_wanted_.front());
      backing_wanted_.pop_front();
    }
    if (!transfer && channel == PageChannel::background && backing_prefetch_) {
      transfer.emplace(*backing_prefetch_);
      backing_prefetch_.reset();
    }
  }
  drop_spoiled(PageChannel::urgent);
  drop_spoiled(PageChannel::background);
  if (urgent_transfer_) read_for(*urgent_transfer_, Purpose::demand);
  if (background_transfer_) {
    read_for(*background_transfer_,
             wanted(background_transfer_) ? Purpose::demand : Purpose::prefetch);
  }
}

void PageIn::read_for(BackingTransfer& transfer, Purpose purpose) {
  if (transfer.spoiled()) return;
  std::deque<Read>& waiting = waiting_for(purpose);
  for (PageRun rest = transfer.unplanned(); rest.pages > 0; rest = transfer.unplanned()) {
    if (supply_->is_zero(rest.first)) {
      std::uint64_t pages = 1;
      while (pages < rest.pages && supply_->is_zero(rest.first + pages)) ++pages;
      transfer.plan_zeros(pages);
      continue;
    }
    if (transfer.reads_pending() >= kTransferReadsMax) break;
    const std::uint64_t most = std::min(rest.pages, kPrefetchRunPagesMax);
    const PageRun run = supply_->contiguous_run(rest.first, most);
    transfer.plan_read(run.pages);
    waiting.push_back({.run = run, .purpose = purpose, .wanted = {}});
  }
  start_waiting(waiting);
}

bool PageIn::ready_full(std::uint64_t window_bytes) const {
  const std::uint64_t windows = pace_ == PrefetchPace::full ? kReadyWindows : 0;
  return background_pages_ >= pages_of_bytes(std::max(kReadyBytesMax, windows * window_bytes));
}

void PageIn::start_prefetch() {
  if (failure_ || pace_ == PrefetchPace::held) return;
  const Nanoseconds now = clock_->now();
  const std::uint64_t window_bytes = window_.bytes(now);
  prefetcher_.set_run_pages_max(prefetch_run_pages_max(now));
  while (prefetch_reads_.empty() && !backing_prefetch_ && !ready_full(window_bytes) &&
         prefetch_pages_reading_ < pages_of_bytes(window_bytes)) {
    wake_at_ = window_.blocked_until(now);
    if (wake_at_) return;
    const PrefetchChoice choice = prefetcher_.next();
    if (choice.kind == PrefetchChoice::Kind::done) return;
    if (choice.kind == PrefetchChoice::Kind::again) {
      // The search goes on in the next step, so that a request does not wait for it.
      wants_step_ = true;
      return;
    }
    take_choice(choice);
  }
}

// A demand read waits for the rest of a read that has begun, so while there are faults the reads are short. Where the bound is the same
// with and without faults, the reads are too.
std::uint64_t PageIn::prefetch_run_pages_max(Nanoseconds now) const {
  const bool adapts =
      options_.prefetch_bytes_in_flight_quiet_max > options_.prefetch_bytes_in_flight_max;
  return adapts && !window_.is_quiet(now) ? kRunPagesInFaults : kPrefetchRunPagesMax;
}

void PageIn::take_choice(const PrefetchChoice& choice) {
  sent_.take(choice.run);
  if (prefetcher_.replaying()) note_touch(choice.run);
  window_.note_started(clock_->now(), bytes_of_pages(choice.run.pages));
  if (choice.kind == PrefetchChoice::Kind::backing) {
    backing_prefetch_ = choice.run;
    activate_transfers();
    return;
  }
  if (choice.kind == PrefetchChoice::Kind::zero) {
    background_.push_back({.run = choice.run});
    background_pages_ += choice.run.pages;
    return;
  }
  prefetch_reads_.push_back({.run = choice.run, .purpose = Purpose::prefetch, .wanted = {}});
  start_waiting(prefetch_reads_);
}

}  // namespace pageferry
