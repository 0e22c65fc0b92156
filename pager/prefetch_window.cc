// Multiplicative decrease, additive increase, at most one change per kStep, so that one burst of
// faults counts once.
#include "pager/prefetch_window.h"

#include <algorithm>

namespace pageferry {
namespace {

constexpr Nanoseconds kStep = Milliseconds(1);
constexpr std::uint64_t kGrowBytes = std::uint64_t{64} << 10;
constexpr Nanoseconds kQuiet = Milliseconds(10);
constexpr std::uint64_t kQuietGrowBytes = std::uint64_t{512} << 10;
constexpr std::uint64_t kQuietShrinkBytes = std::uint64_t{256} << 10;
constexpr Nanoseconds kSlowRead = Milliseconds(2);
constexpr Nanoseconds kSlowReadIsRecent = Milliseconds(20);
constexpr int kSlowFactor = 3;
// At each fault the best latency drifts up by this part of the difference: 1/64, at a slow one 1/1024. Slow ones are mostly prefetch's
// doing; if they drew the best after them at the same pace, prefetch would soon find its own harm usual.
constexpr int kForgetShift = 6;
constexpr int kForgetSlowShift = 10;

}  // namespace

PrefetchWindow::PrefetchWindow(std::uint64_t bytes_max, std::uint64_t bandwidth_bytes_per_s,
                               std::uint64_t quiet_bytes_max, Nanoseconds latency_slack)
    : bytes_max_(std::max(bytes_max, kPrefetchWindowBytesMin)),
      quiet_bytes_max_(std::max(quiet_bytes_max, bytes_max_)),
      bandwidth_(bandwidth_bytes_per_s),
      latency_slack_(latency_slack),
      bytes_(bytes_max_) {}

std::uint64_t PrefetchWindow::bytes_max_of_slow_reads() const {
  return std::max(bytes_max_, kPrefetchWindowBytesUsual);
}

std::uint64_t PrefetchWindow::bytes_max_now(Nanoseconds now) const {
  if (!is_quiet(now)) return bytes_max_;
  const bool slow = slow_read_at_ && now - *slow_read_at_ < kSlowReadIsRecent;
  return slow ? std::min(quiet_bytes_max_, bytes_max_of_slow_reads()) : quiet_bytes_max_;
}

std::uint64_t PrefetchWindow::bytes(Nanoseconds now) {
  if (now - changed_at_ < kStep) return bytes_;
  const std::uint64_t most = bytes_max_now(now);
  if (bytes_ < most) {
    bytes_ = std::min(bytes_ + (is_quiet(now) ? kQuietGrowBytes : kGrowBytes), most);
    changed_at_ = now;
  }
  return bytes_;
}

bool PrefetchWindow::is_quiet(Nanoseconds now) const {
  return now - fault_at_ >= kQuiet;
}

std::optional<Nanoseconds> PrefetchWindow::blocked_until(Nanoseconds now) const {
  if (bandwidth_ == 0 || now >= next_start_) return std::nullopt;
  return next_start_;
}

void PrefetchWindow::note_started(Nanoseconds now, std::uint64_t bytes) {
  if (bandwidth_ == 0) return;
  const auto cost_ns = static_cast<double>(bytes) * 1e9 / static_cast<double>(bandwidth_);
  next_start_ = std::max(now, next_start_) + Nanoseconds(static_cast<Nanoseconds::rep>(cost_ns));
}

void PrefetchWindow::note_read(Nanoseconds now, Nanoseconds took) {
  if (took < kSlowRead) return;
  slow_read_at_ = now;
  const std::uint64_t least = bytes_max_of_slow_reads();
  if (bytes_ <= least || now - changed_at_ < kStep) return;
  bytes_ = std::max(bytes_ - kQuietShrinkBytes, least);
  changed_at_ = now;
}

void PrefetchWindow::note_fault(Nanoseconds now) {
  fault_at_ = now;
  bytes_ = std::min(bytes_, bytes_max_);
}

void PrefetchWindow::note_fault_served(Nanoseconds now, Nanoseconds latency) {
  note_fault(now);
  if (best_latency_ == Nanoseconds::zero() || latency < best_latency_) {
    best_latency_ = std::max(latency, Nanoseconds(1));
    return;
  }
  const bool slow = latency > kSlowFactor * best_latency_ + latency_slack_;
  best_latency_ += (latency - best_latency_) / (1 << (slow ? kForgetSlowShift : kForgetShift));
  if (!slow || now - changed_at_ < kStep) return;
  bytes_ = std::max(bytes_ / 2, kPrefetchWindowBytesMin);
  changed_at_ = now;
}

}  // namespace pageferry
