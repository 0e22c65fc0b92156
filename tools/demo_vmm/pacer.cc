// Fractions of a page are kept as debt, so that a slow rate is right over time. A pause is no debt: a slice is at most kCatchUp long.
#include "tools/demo_vmm/pacer.h"

#include <algorithm>
#include <cmath>

namespace pageferry::demo {

Budget RateShare::take(Nanoseconds now) {
  const Nanoseconds passed =
      last_ < Nanoseconds::zero() ? Nanoseconds::zero() : std::min(now - last_, kCatchUp);
  last_ = now;
  const double seconds = std::chrono::duration<double>(passed).count();
  Budget budget;
  budget.writes = whole(writes_, rates_.write_pages, Budget::kPagesMax, seconds);
  budget.reads = whole(reads_, rates_.read_pages, Budget::kPagesMax, seconds);
  budget.disk = whole(disk_, rates_.disk_requests, Budget::kDiskMax, seconds);
  budget.give_back = whole(give_backs_, rates_.give_backs, Budget::kGiveBackMax, seconds);
  return budget;
}

std::uint32_t RateShare::whole(double& owed, std::uint64_t rate, std::uint32_t limit,
                               double seconds) const {
  owed += static_cast<double>(rate) / vcpus_ * seconds;
  const double given = std::min(std::floor(owed), static_cast<double>(limit));
  owed = std::min(owed - given, 1.0);
  return static_cast<std::uint32_t>(given);
}

Pacer::Pacer(const Rates& rates, std::uint32_t vcpus) : rates_(rates) {
  vcpus_.assign(vcpus, PerVcpu{RateShare(rates, vcpus)});
}

Rates Pacer::rates() const {
  const std::lock_guard lock(mutex_);
  return rates_;
}

void Pacer::set_rates(const Rates& rates) {
  const std::lock_guard lock(mutex_);
  rates_ = rates;
  const auto count = static_cast<std::uint32_t>(vcpus_.size());
  vcpus_.assign(count, PerVcpu{RateShare(rates, count)});
}

Budget Pacer::next(std::uint32_t vcpu, Ask ask) {
  if (ask == Ask::now) return {};
  std::unique_lock lock(mutex_);
  PerVcpu& own = vcpus_[vcpu];
  while (!hurried_) {
    const Nanoseconds left = own.next_slice - clock_.now();
    if (left <= Nanoseconds::zero()) break;
    changed_.wait_for(lock, left);
  }
  if (hurried_) return {};
  const Nanoseconds now = clock_.now();
  own.next_slice = now + kSlice;
  return own.share.take(now);
}

void Pacer::hurry() {
  {
    const std::lock_guard lock(mutex_);
    hurried_ = true;
  }
  changed_.notify_all();
}

void Pacer::relax() {
  const std::lock_guard lock(mutex_);
  hurried_ = false;
}

}  // namespace pageferry::demo
