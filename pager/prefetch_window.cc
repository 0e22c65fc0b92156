// Multiplicative decrease, additive increase, at most one change per kStep, so that one burst of
// faults counts once.
#include "pager/prefetch_window.h"

#include <algorithm>

namespace pageferry {
namespace {

constexpr Nanoseconds kStep = Milliseconds(1);
constexpr std::uint64_t kGrowBytes = std::uint64_t{64} << 10;
constexpr Nanoseconds kLatencySlack = std::chrono::microseconds(300);
constexpr int kSlowFactor = 3;
constexpr int kForgetShift =
    6;  // the best latency drifts up by 1/64 of the difference at each fault

}  // namespace

PrefetchWindow::PrefetchWindow(std::uint64_t bytes_max, std::uint64_t bandwidth_bytes_per_s)
    : bytes_max_(std::max(bytes_max, kPrefetchWindowBytesMin)),
      bandwidth_(bandwidth_bytes_per_s),
      bytes_(bytes_max_) {}

std::uint64_t PrefetchWindow::bytes(Nanoseconds now) {
  if (bytes_ < bytes_max_ && now - changed_at_ >= kStep) {
    bytes_ = std::min(bytes_ + kGrowBytes, bytes_max_);
    changed_at_ = now;
  }
  return bytes_;
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

void PrefetchWindow::note_fault_served(Nanoseconds now, Nanoseconds latency) {
  if (best_latency_ == Nanoseconds::zero() || latency < best_latency_) {
    best_latency_ = std::max(latency, Nanoseconds(1));
    return;
  }
  const bool slow = latency > kSlowFactor * best_latency_ + kLatencySlack;
  best_latency_ += (latency - best_latency_) / (1 << kForgetShift);
  if (!slow || now - changed_at_ < kStep) return;
  bytes_ = std::max(bytes_ / 2, kPrefetchWindowBytesMin);
  changed_at_ = now;
}

}  // namespace pageferry
