// Downtime = fixed part (stop, devices, commit) + bytes left / bandwidth. The steering owns the
// second term only; the fixed part is taken off the limits by an allowance.
//
// Why not the smallest threshold for ever: a pass cannot carry less than what the guest writes
// during a sync and a pass of length zero. Below that floor the passes go on without end, each
// costing the guest a dirty sync. Two passes that are not at least a fifth smaller than the one
// before say that it is reached.
#include "vmstate/switchover_steering.h"

#include <algorithm>

namespace pageferry {
namespace {

// Taken off target and maximum for what is not page transfer, but never more than three quarters of
// them.
constexpr Milliseconds kFixedDowntime{10};
constexpr std::uint64_t kFloorBytesMin = std::uint64_t{256} << 10;
constexpr Nanoseconds kFloorTime = Milliseconds(1);
constexpr std::uint64_t kBandwidthUnknown = 100'000'000;  // bytes/s, until something was measured
constexpr std::size_t kPassesRemembered = 3;
constexpr unsigned kStalledPassesMax = 2;

}  // namespace

void SwitchoverSteering::on_bandwidth(std::uint64_t bytes_per_s) {
  bandwidth_ = std::max(bandwidth_, bytes_per_s);
}

std::uint64_t SwitchoverSteering::bytes_in(Nanoseconds time) const {
  const std::uint64_t bandwidth = bandwidth_ == 0 ? kBandwidthUnknown : bandwidth_;
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(time).count();
  return bandwidth / 1'000'000 * static_cast<std::uint64_t>(us);
}

std::uint64_t SwitchoverSteering::floor_bytes() const {
  return std::max(kFloorBytesMin, bytes_in(kFloorTime));
}

std::uint64_t SwitchoverSteering::target_bytes() const {
  const Nanoseconds target = limits_.target_downtime;
  return std::max(floor_bytes(), bytes_in(std::max(target - kFixedDowntime, target / 4)));
}

std::uint64_t SwitchoverSteering::max_bytes() const {
  const Nanoseconds most = limits_.max_downtime;
  return std::max(target_bytes(), bytes_in(std::max(most - kFixedDowntime, most / 4)));
}

std::uint64_t SwitchoverSteering::threshold_bytes() const {
  return std::clamp(raised_to_, floor_bytes(), max_bytes());
}

void SwitchoverSteering::on_pass(std::uint64_t dirty_bytes) {
  if (counting_) ++counted_passes_;
  const bool shrinks = !recent_.empty() && dirty_bytes < recent_.back() / 5 * 4;
  recent_.push_back(dirty_bytes);
  if (recent_.size() > kPassesRemembered) recent_.pop_front();
  stalled_passes_ = shrinks ? 0 : stalled_passes_ + 1;
  if (stalled_passes_ > kStalledPassesMax) {
    raise();
    stalled_passes_ = 1;
  }
}

// To a bit above the smallest of the last passes if that keeps the target; else to the target;
// beyond it by doubling.
void SwitchoverSteering::raise() {
  const std::uint64_t smallest = *std::min_element(recent_.begin(), recent_.end());
  const std::uint64_t reachable = smallest + smallest / 2;
  const std::uint64_t now = threshold_bytes();
  if (reachable <= now) return;
  if (now < target_bytes()) {
    raised_to_ = std::min(reachable, target_bytes());
  } else {
    raised_to_ = std::min({std::max(2 * now, now + 1), reachable, max_bytes()});
  }
}

}  // namespace pageferry
