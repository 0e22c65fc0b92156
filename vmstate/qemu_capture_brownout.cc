// Brownout: the passes while the guest runs. One loop sleeps on QEMU's events, at most kEventWait,
// so that permission to switch and a stop from outside are noticed soon; four times a second it
// asks QEMU for its numbers.
//
// Sizes of passes come from our own byte counter at MIGRATION_PASS events, not from query-migrate:
// an answer is late by a round trip, in which a fast QEMU sends most of a small pass.
#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "vmstate/qemu_capture_impl.h"
#include "vmstate/qmp_fields.h"

namespace pageferry {
namespace {

using nlohmann::json;

constexpr Milliseconds kProgressInterval{250};  // query-migrate and on_progress
constexpr Seconds kNotConvergingInterval{1};
// Shorter ones say how fast a socket's buffer is emptied.
constexpr Milliseconds kBandwidthSample{20};
constexpr double kBytesPerSInMbps = 125'000;  // QEMU: 10^6 bits a second

std::uint64_t bytes_per_s(std::uint64_t bytes, Nanoseconds elapsed) {
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(elapsed).count();
  return bytes * 1'000'000 / static_cast<std::uint64_t>(std::max<std::int64_t>(1, us));
}

}  // namespace

Result<void> QemuCaptureImpl::run_brownout() {
  if (phase_ != Phase::started) return fail(Errc::invalid, "capture: run_brownout() out of order");
  while (events_.status() != "pre-switchover") {
    PF_TRY(check_alive());
    PF_TRY(check_foreign_stop());
    if (!events_.stopped() || !guest_was_running_) {
      const Result<void> steered = steer();
      // The end of the stream may be noticed here first; QEMU's own reason says more.
      if (!steered && steered.error().code == Errc::gone) return migration_failed(&steered.error());
      PF_TRY(steered);
    }
    PF_TRY(pump(kEventWait));
  }
  PF_TRY(check_alive());
  if (guest_was_running_ && !control_->released() && settings_->has_switchover_ack()) {
    // QEMU waits for our acknowledgement as long as the guest runs.
    guest_end_ = GuestEnd::other_pause;
    return fail(Errc::vmm, guest_end_text(GuestEnd::other_pause));
  }
  PF_TRY(wait_until_permitted());
  phase_ = Phase::stopped;
  return {};
}

Result<void> QemuCaptureImpl::steer() {
  const std::uint64_t passes = events_.passes();
  if (passes != passes_seen_) {
    const std::uint64_t bytes = reader_->counters().bytes;
    // The first sync begins pass 1 and the second ends it: what came in pass 1 says nothing about
    // the dirty rate.
    if (passes_seen_ >= 2 && control_->at_full_bandwidth())
      control_->steering().on_pass((bytes - bytes_at_pass_) / (passes - passes_seen_));
    note_bandwidth_of_pass(bytes);
    passes_seen_ = passes;
    bytes_at_pass_ = bytes;
    observer_->on_pass(passes);
    PF_TRY(control_->adjust(qemu_bandwidth_));
  }
  if (guest_was_running_ && !control_->released()) {
    if (observer_->may_switch()) {
      PF_TRY(control_->release(*reader_));
    } else {
      PF_TRY(control_->keep_holding(*reader_, passes, clock_.now()));
    }
  }
  if (clock_.now() - progress_at_ >= kProgressInterval) PF_TRY(report_progress());
  return {};
}

// A small guest's first pass, which is when the threshold is decided, may end before the first progress report.
void QemuCaptureImpl::note_bandwidth_of_pass(std::uint64_t bytes) {
  const Nanoseconds now = clock_.now();
  const Nanoseconds since = std::exchange(pass_at_, now);
  if (passes_seen_ == 0 || now - since < kBandwidthSample || !control_->at_full_bandwidth()) return;
  control_->steering().on_bandwidth(bytes_per_s(bytes - bytes_at_pass_, now - since));
}

Result<void> QemuCaptureImpl::report_progress() {
  PF_ASSIGN(const json migration, execute("query-migrate"));
  const Nanoseconds now = clock_.now();
  const std::uint64_t bytes = reader_->counters().bytes;
  const json ram = object_field(migration, "ram");
  progress_ = {
      .status = text_field(migration, "status"),
      .ram_total_bytes = number_field(ram, "total"),
      .ram_remaining_bytes = number_field(ram, "remaining"),
      .ram_transferred_bytes = number_field(ram, "transferred"),
      .duplicate_pages = number_field(ram, "duplicate"),
      .dirty_pages_per_s = number_field(ram, "dirty-pages-rate"),
      .dirty_sync_count = number_field(ram, "dirty-sync-count"),
      .bandwidth_bytes_per_s = bytes_per_s(bytes - bytes_at_progress_, now - progress_at_)};
  qemu_bandwidth_ =
      ram.contains("mbps") && ram["mbps"].is_number()
          ? static_cast<std::uint64_t>(std::max(0.0, ram["mbps"].get<double>()) * kBytesPerSInMbps)
          : 0;
  progress_at_ = now;
  bytes_at_progress_ = bytes;
  if (control_->at_full_bandwidth())
    control_->steering().on_bandwidth(progress_.bandwidth_bytes_per_s);
  PF_TRY(control_->adjust(qemu_bandwidth_));
  PF_TRY(obey(observer_->on_progress(progress_)));
  if (control_->steering().not_converging() &&
      now - asked_not_converging_at_ >= kNotConvergingInterval) {
    asked_not_converging_at_ = now;
    PF_TRY(obey(observer_->on_not_converging(progress_)));
  }
  return {};
}

Result<void> QemuCaptureImpl::obey(CaptureObserver::Verdict verdict) {
  switch (verdict) {
    case CaptureObserver::Verdict::go_on:
      return {};
    case CaptureObserver::Verdict::abort:
      return fail(Errc::canceled, "the migration was given up");
    case CaptureObserver::Verdict::switch_now:
      break;
  }
  PF_TRY(control_->force_switch());
  return control_->release(*reader_);
}

// A guest that was paused before is stopped anyway and may wait as long as it takes. One that ran
// got here without permission only where QEMU cannot be held for sure (before 8.1, a guest that
// writes nothing): it waits no longer than a downtime may last.
Result<void> QemuCaptureImpl::wait_until_permitted() {
  const auto deadline =
      guest_was_running_ ? Deadline::after(clock_, options_.max_downtime) : Deadline::never();
  while (!control_->released() && !observer_->may_switch()) {
    if (deadline.passed()) {
      return fail(Errc::timeout, fmt::format("QEMU stopped the guest before the destination was "
                                             "ready, and that took longer than {} ms",
                                             options_.max_downtime.count()));
    }
    PF_TRY(pump(kEventWait));
    PF_TRY(check_alive());
  }
  return {};
}

}  // namespace pageferry
