// QemuSwitchoverControl: holds a source QEMU in brownout, releases it, and sets when it stops the
// guest: SwitchoverSteering's threshold put into the parameters that the QEMU at hand understands.
//
//   hold      8.1 and later: capability switchover-ack, QEMU waits for our word on the return path
//             before: the reader's gate near the end of pass 1
//             then, both: a max-bandwidth of one page in 100 ms. Without it QEMU would make
//             thousands of passes a second, each a dirty sync that the guest feels. Where the
//             acknowledgement holds it, one pass a second at full speed keeps the store warm.
//   threshold 8.2 and later: avail-switchover-bandwidth says it in bytes
//             before: downtime-limit, reckoned from the bandwidth that QEMU reports
//
// Thread rule: one thread. Lifetime: all references outlive it.
#pragma once

#include <cstdint>

#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/capture_channel.h"
#include "vmstate/qemu_source_settings.h"
#include "vmstate/qemu_stream_reader.h"
#include "vmstate/switchover_steering.h"

namespace pageferry {

class QemuSwitchoverControl {
 public:
  QemuSwitchoverControl(QemuSourceSettings& settings, CaptureChannel& channel,
                        SwitchoverSteering::Limits limits,
                        std::uint64_t bandwidth_limit_bytes_per_s);

  // Before `migrate`: first parameters.
  Result<void> prepare();
  // Before the reader starts: closes its gate where that is how this QEMU is held.
  void arm_gate(QemuStreamReader& reader) const;

  // While the guest must not be stopped. Called often; does something only at the gate, when a
  // pass after the first has begun, or when it is time for the next.
  Result<void> keep_holding(QemuStreamReader& reader, std::uint64_t passes, Nanoseconds now);
  // The guest may be stopped as soon as few enough pages are dirty. Once.
  Result<void> release(QemuStreamReader& reader);
  bool released() const { return released_; }
  // The guest is to be stopped at the next opportunity, whatever is left.
  Result<void> force_switch();

  SwitchoverSteering& steering() { return steering_; }
  // Brings QEMU's parameters in line with the steering. `qemu_bytes_per_s`: the bandwidth QEMU
  // itself reckons with.
  Result<void> adjust(std::uint64_t qemu_bytes_per_s);
  // Bandwidth is not held down by us, so it may be measured.
  bool at_full_bandwidth() const { return !throttled_; }

 private:
  std::uint64_t full_bandwidth() const;
  Result<void> throttle(Nanoseconds now);
  Result<void> unthrottle();

  QemuSourceSettings* settings_;
  CaptureChannel* channel_;
  SwitchoverSteering steering_;
  std::uint64_t bandwidth_limit_;
  bool released_ = false;
  bool throttled_ = false;
  Nanoseconds throttled_at_{0};
  std::uint64_t refresh_ends_at_pass_ = 2;  // the second sync ends pass 1
  bool forced_ = false;
  std::uint64_t limit_set_ = 0;  // the number last given to QEMU: bytes, or ms
};

}  // namespace pageferry
