// Invariant: whenever a function returns, each REMOVE that was read, and each report that was taken, is in RemovedPages, and whoever waited
// in its range was woken.
//
// A report can come while a page is being placed: the page then holds what it must not. It is taken right after the placing, and handed
// back to be removed again. REMOVE events need no such thing: the kernel refuses every placing while one is unread.
#include "pager/ballooning_outlet.h"

#include <algorithm>
#include <utility>

namespace pageferry {

// Who waits for a page that was removed may have been heard before, and wait for what PageIn will bring and put() drop: woken, they ask
// again, and are told apart then.
Result<void> BallooningOutlet::hear() {
  heard_.removed.clear();
  auto read = placing_->read_events(heard_);
  for (const PageRun& run : heard_.removed) {
    removed_->add(run);
    if (reports_ != nullptr) reports_->keep(run);
    PF_TRY(placing_->wake(run));
  }
  return read;
}

Result<void> BallooningOutlet::take_reports() {
  reported_.clear();
  if (reports_ == nullptr) return {};
  reports_->take(reported_);
  for (const PageRun& run : reported_) {
    removed_->add(run);
    PF_TRY(placing_->wake(run));
  }
  return {};
}

// What was reported while these pages were placed.
Result<void> BallooningOutlet::check_placed(PageRun placed) {
  if (reports_ == nullptr || placed.pages == 0) return {};
  PF_TRY(take_reports());
  for (const PageRun& run : reported_) {
    const std::uint64_t first = std::max(raw(run.first), raw(placed.first));
    const std::uint64_t end =
        std::min(raw(run.first) + run.pages, raw(placed.first) + placed.pages);
    if (first < end) reports_->remove_again({.first = PageIndex{first}, .pages = end - first});
  }
  return {};
}

Result<void> BallooningOutlet::read_faults(std::vector<PageRun>& faults, const IsThere& is_there) {
  held_ = false;
  PF_TRY(take_reports());
  PF_TRY(hear());
  for (const PageRun& fault : std::exchange(heard_.faults, {})) {
    const bool gone = removed_->has(fault.first) || (is_there && is_there(fault.first));
    if (!gone) {
      faults.push_back(fault);
      continue;
    }
    PF_ASSIGN(const bool placed, placing_->put_zero_backing_page(fault.first));
    if (placed) {
      ++zeros_placed_;
    } else {
      heard_.faults.push_back(fault);
      held_ = true;
    }
  }
  return {};
}

// `put_kept(from, pages)` places a part of the run, counted from its first page, none of which was removed.
template <typename Put>
Result<std::uint64_t> BallooningOutlet::put(PageChannel channel, PageRun run, Put put_kept) {
  std::uint64_t done = 0;
  PF_TRY(take_reports());
  while (done < run.pages) {
    const PageRun rest{.first = run.first + done, .pages = run.pages - done};
    const std::uint64_t pages = removed_->alike(rest);
    if (removed_->has(rest.first)) {
      placing_->forget_begun(channel);
      done += pages;
      continue;
    }
    PF_ASSIGN(const std::uint64_t placed, put_kept(done, pages));
    PF_TRY(check_placed({.first = rest.first, .pages = placed}));
    done += placed;
    if (placed == pages) continue;
    held_ = true;
    PF_TRY(hear());
    break;
  }
  return done;
}

Result<std::uint64_t> BallooningOutlet::put_pages(PageChannel channel, PageRun run,
                                                  std::span<const std::byte> bytes) {
  return put(channel, run, [&](std::uint64_t from, std::uint64_t pages) {
    return placing_->put_pages(channel, {.first = run.first + from, .pages = pages},
                               bytes.subspan(bytes_of_pages(from), bytes_of_pages(pages)));
  });
}

Result<std::uint64_t> BallooningOutlet::put_zeros(PageChannel channel, PageRun run) {
  return put(channel, run, [&](std::uint64_t from, std::uint64_t pages) {
    return placing_->put_zeros(channel, {.first = run.first + from, .pages = pages});
  });
}

Result<UserfaultOutlet::Poison> BallooningOutlet::poison(PageRun run) {
  PF_TRY(take_reports());
  if (removed_->has(run.first)) return UserfaultOutlet::Poison::done;
  PF_ASSIGN(const UserfaultOutlet::Poison poisoned, placing_->poison(run));
  if (poisoned == UserfaultOutlet::Poison::given_back) {
    held_ = true;
    PF_TRY(hear());
  }
  return poisoned;
}

}  // namespace pageferry
