// Each turn looks at all pages that are set aside; they are few, or the image is of no use.
#include "pager/unproved_page_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace pageferry {
namespace {

constexpr Nanoseconds kReadAgainInterval = Seconds(1);
// Each is several attempts of the supply.
constexpr unsigned kReadsBeforePoison = 1;
constexpr unsigned kReadsBeforeTheEnd = 3;

}  // namespace

UnprovedPagePolicy::UnprovedPagePolicy(PageIn& page_in, BallooningOutlet& outlet,
                                       std::uint64_t pages_total, BadPages bad_pages,
                                       ServeUntil serve_until, const Clock& clock)
    : page_in_(&page_in),
      outlet_(&outlet),
      pages_total_(pages_total),
      bad_pages_(bad_pages),
      serve_until_(serve_until),
      clock_(clock) {}

Result<void> UnprovedPagePolicy::turn() {
  wake_at_.reset();
  if (page_in_->unproved().empty() && tried_.empty()) return {};
  forget_proved();
  std::uint64_t missing = 0;
  std::vector<PageIn::Unproved> all;  // what follows takes some out
  for (const auto& [first, unproved] : page_in_->unproved()) {
    missing += unproved.run.pages;
    tried_.try_emplace(first, Tried{.run = unproved.run});
    all.push_back(unproved);
  }
  const bool alone_missing = page_in_->pages_left() + missing == pages_total_;
  for (const PageIn::Unproved& unproved : all) {
    if (bad_pages_ == BadPages::end_service) return tl::make_unexpected(unproved.error);
    PF_TRY(treat(tried_.at(raw(unproved.run.first)), unproved, alone_missing));
  }
  std::uint64_t bad = pages_poisoned_;
  for (const auto& [first, tried] : tried_) bad += tried.run.pages;
  pages_bad_ = bad;
  return {};
}

void UnprovedPagePolicy::forget_proved() {
  std::erase_if(tried_,
                [this](const auto& entry) { return page_in_->has_left(entry.second.run.first); });
}

Result<void> UnprovedPagePolicy::treat(Tried& tried, const PageIn::Unproved& unproved,
                                       bool alone_missing) {
  const PageIndex first = tried.run.first;
  if (!page_in_->is_wanted(first) && !alone_missing) return {};
  if (bad_pages_ == BadPages::poison && tried.times >= kReadsBeforePoison) {
    PF_ASSIGN(const bool poisoned, try_to_poison(tried));
    if (poisoned) return {};
  }
  const bool to_the_end = alone_missing && serve_until_ == ServeUntil::all_there;
  if (to_the_end && tried.times >= kReadsBeforeTheEnd) return tl::make_unexpected(unproved.error);
  const Nanoseconds now = clock_.now();
  if (now < tried.next_at) {
    wake_at_ = std::min(wake_at_.value_or(tried.next_at), tried.next_at);
    return {};
  }
  ++tried.times;
  tried.next_at = now + kReadAgainInterval;
  page_in_->read_again(first);
  return {};
}

// False: the page is left as it is, for now or because this kernel cannot.
Result<bool> UnprovedPagePolicy::try_to_poison(const Tried& tried) {
  PF_ASSIGN(const UserfaultOutlet::Poison poison, outlet_->poison(tried.run));
  if (poison == UserfaultOutlet::Poison::not_supported) bad_pages_ = BadPages::leave_waiting;
  if (poison != UserfaultOutlet::Poison::done) return false;
  const PageRun run = tried.run;
  pages_poisoned_ += run.pages;
  page_in_->settle_unproved(run.first);
  tried_.erase(raw(run.first));
  return true;
}

}  // namespace pageferry
