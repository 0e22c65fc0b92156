// QEMU's rule: after a dirty sync the guest is stopped when remaining <= bandwidth *
// downtime-limit, the bandwidth being what it sent in the last 100 ms. That bandwidth is wrong for
// us twice: while QEMU is held it is tiny, and with a small dirty set it is the guest's dirty rate,
// not the speed of the way. So where QEMU lets us (avail-switchover-bandwidth) we give the product;
// elsewhere the downtime-limit is reckoned anew from the bandwidth that QEMU reports, and bounded
// by the real maximum.
//
// downtime-limit=0 is a trap: before 9 QEMU then never syncs at the end of pass 1 and stops the
// guest with its whole dirty set.
#include "vmstate/qemu_switchover_control.h"

#include <algorithm>

#include "vmstate/qemu_return_path.h"

namespace pageferry {
namespace {

// "No limit" that every version takes for a number of bytes per second.
constexpr std::uint64_t kUnlimitedBytesPerS = std::uint64_t{1} << 40;
// One page, or two zero pages, in each 100 ms; below 10 a second the limit would become 0, which is
// none.
constexpr std::uint64_t kHoldBytesPerS = 100;
constexpr Seconds kRefreshInterval{1};
constexpr std::uint64_t kGatePages =
    32768;  // 128 MiB: more than what is on its way when the gate closes
constexpr std::uint64_t kSmallestLimitMs = 1;
constexpr std::uint64_t kLargestLimitMs = 2'000'000;  // QEMU's own bound
constexpr std::uint64_t kMsPerS = 1000;

}  // namespace

QemuSwitchoverControl::QemuSwitchoverControl(QemuSourceSettings& settings, CaptureChannel& channel,
                                             SwitchoverSteering::Limits limits,
                                             std::uint64_t bandwidth_limit_bytes_per_s)
    : settings_(&settings),
      channel_(&channel),
      steering_(limits),
      bandwidth_limit_(bandwidth_limit_bytes_per_s) {}

std::uint64_t QemuSwitchoverControl::full_bandwidth() const {
  return bandwidth_limit_ == 0 ? kUnlimitedBytesPerS : std::max(bandwidth_limit_, kHoldBytesPerS);
}

Result<void> QemuSwitchoverControl::prepare() {
  PF_TRY(settings_->set_parameters({{"max-bandwidth", full_bandwidth()}}));
  return adjust(0);
}

void QemuSwitchoverControl::arm_gate(QemuStreamReader& reader) const {
  if (settings_->has_switchover_ack()) return;
  reader.close_gate(kGatePages);
}

Result<void> QemuSwitchoverControl::keep_holding(QemuStreamReader& reader, std::uint64_t passes,
                                                 Nanoseconds now) {
  if (!settings_->has_switchover_ack()) {
    if (throttled_ || !reader.at_gate()) return {};
    PF_TRY(throttle(now));
    reader.open_gate();
    return {};
  }
  if (!throttled_ && passes >= refresh_ends_at_pass_) return throttle(now);
  if (throttled_ && now - throttled_at_ >= kRefreshInterval) {
    refresh_ends_at_pass_ = passes + 1;
    return unthrottle();
  }
  return {};
}

Result<void> QemuSwitchoverControl::throttle(Nanoseconds now) {
  throttled_ = true;
  throttled_at_ = now;
  if (settings_->has_switchover_bandwidth()) {
    return settings_->set_parameters({{"max-bandwidth", kHoldBytesPerS}});
  }
  limit_set_ = kSmallestLimitMs;
  return settings_->set_parameters(
      {{"max-bandwidth", kHoldBytesPerS}, {"downtime-limit", kSmallestLimitMs}});
}

Result<void> QemuSwitchoverControl::unthrottle() {
  throttled_ = false;
  return settings_->set_parameters({{"max-bandwidth", full_bandwidth()}});
}

Result<void> QemuSwitchoverControl::release(QemuStreamReader& reader) {
  if (released_) return {};
  released_ = true;
  steering_.start_counting();
  if (throttled_) PF_TRY(unthrottle());
  reader.open_gate();
  if (!settings_->has_switchover_ack()) return {};
  ByteBuffer message;
  qemu_stream::append_switchover_ack(message);
  return channel_->send(message);
}

Result<void> QemuSwitchoverControl::force_switch() {
  if (forced_) return {};
  forced_ = true;
  if (settings_->has_switchover_bandwidth()) {
    return settings_->set_parameters(
        {{"avail-switchover-bandwidth", kUnlimitedBytesPerS}, {"downtime-limit", kLargestLimitMs}});
  }
  return settings_->set_parameters({{"downtime-limit", kLargestLimitMs}});
}

Result<void> QemuSwitchoverControl::adjust(std::uint64_t qemu_bytes_per_s) {
  if (forced_ || throttled_) return {};
  const std::uint64_t threshold = steering_.threshold_bytes();
  const bool in_bytes = settings_->has_switchover_bandwidth();
  // Without a number from QEMU: the smallest limit.
  std::uint64_t limit = threshold;
  if (!in_bytes) {
    limit = qemu_bytes_per_s == 0 ? kSmallestLimitMs : threshold * kMsPerS / qemu_bytes_per_s;
    limit = std::clamp(limit, kSmallestLimitMs,
                       static_cast<std::uint64_t>(steering_.max_downtime().count()));
  }
  // Small corrections are not worth a command.
  if (limit_set_ != 0 && limit * 10 < limit_set_ * 11 && limit * 10 > limit_set_ * 9) return {};
  limit_set_ = limit;
  if (!in_bytes) return settings_->set_parameters({{"downtime-limit", limit}});
  return settings_->set_parameters(
      {{"avail-switchover-bandwidth", limit}, {"downtime-limit", kMsPerS}});
}

}  // namespace pageferry
