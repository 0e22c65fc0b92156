// The class behind QemuCapture: shared by qemu_capture.cc (beginning and end) and
// qemu_capture_brownout.cc (the passes between).
//
// Thread rule and lifetime: see qemu_capture.h.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "vmstate/capture_channel.h"
#include "vmstate/qemu_capture.h"
#include "vmstate/qemu_source_events.h"
#include "vmstate/qemu_source_settings.h"
#include "vmstate/qemu_stream_reader.h"
#include "vmstate/qemu_switchover_control.h"

namespace pageferry {

// How long the control loop sleeps when QEMU says nothing.
inline constexpr Milliseconds kEventWait{20};
// From STOP to pre-switchover when it was QEMU's own stop.
inline constexpr Milliseconds kStopGrace{200};

class QemuCaptureImpl final : public QemuCapture {
 public:
  QemuCaptureImpl(QmpClient& qmp, PageSink& sink, CaptureObserver& observer, CaptureOptions options)
      : qmp_(&qmp), sink_(&sink), observer_(&observer), options_(options) {}
  ~QemuCaptureImpl() override;

  Result<void> start() override;
  const QemuState& state() const override { return state_; }
  const MemoryLayout& layout() const override { return state_.layout; }
  void describe(VmManifest& manifest) const override {
    manifest.machine_type = state_.machine_type;
    manifest.blocks = state_.layout.blocks();
  }
  std::vector<std::byte> encode_state() const override { return encode_qemu_state(state_); }
  Result<void> run_brownout() override;
  Result<void> run_blackout() override;
  Result<void> commit_source() override;
  Result<void> abort() override;
  bool request_stop() override;
  bool shut_was_sent() const override { return channel_ && channel_->committed(); }
  CaptureStats stats() const override;

 private:
  enum class Phase : std::uint8_t {
    idle,
    started,
    stopped,
    complete,
    committing,
    completed,
    ended
  };

  Result<nlohmann::json> execute(const char* command,
                                 nlohmann::json arguments = nlohmann::json::object());
  Result<void> give_channel();
  // Takes events: waits up to `wait` for the first, then takes what is there.
  Result<void> pump(Nanoseconds wait);
  void apply_event(const nlohmann::json& event);
  // An error of anything that can end a migration before its end: our stop, the reader, the guest,
  // QEMU.
  Result<void> check_alive();
  Unexpected migration_failed(const Error* reader_error);
  Result<void> check_foreign_stop();

  Result<void> steer();
  void note_bandwidth_of_pass(std::uint64_t bytes);
  Result<void> report_progress();
  Result<void> obey(CaptureObserver::Verdict verdict);
  Result<void> wait_until_permitted();
  Result<bool> migration_is_over();
  Result<void> restore_guest();

  MonotonicClock clock_;
  QmpClient* qmp_;
  PageSink* sink_;
  CaptureObserver* observer_;
  CaptureOptions options_;

  // request_stop() may come from another thread before or while start() makes the channel: it
  // leaves a mark that start() reads.
  std::atomic<CaptureChannel*> channel_for_stop_{nullptr};
  std::atomic<bool> stop_requested_{false};
  std::unique_ptr<CaptureChannel> channel_;
  std::unique_ptr<QemuStreamReader> reader_;
  std::atomic<QemuStreamReader*> reader_for_stats_{nullptr};

  std::optional<QemuSourceSettings> settings_;
  std::optional<QemuSwitchoverControl> control_;
  QemuSourceEvents events_;
  QemuState state_;
  Phase phase_ = Phase::idle;
  bool fd_name_held_ = false;  // QEMU still has the descriptor under its name
  std::string fd_name_;

  // Steering.
  std::uint64_t passes_seen_ = 0;
  std::uint64_t bytes_at_pass_ = 0;
  Nanoseconds pass_at_{0};
  std::uint64_t bytes_at_progress_ = 0;
  Nanoseconds progress_at_{0};
  Nanoseconds asked_not_converging_at_{0};
  CaptureObserver::Progress progress_;
  std::uint64_t qemu_bandwidth_ = 0;  // what QEMU itself reckons with, bytes/s

  // For stats(), from any thread.
  std::atomic<std::uint64_t> passes_{0};
  std::atomic<std::int64_t> stopped_ns_{0};
  std::atomic<std::int64_t> continued_ns_{0};
  std::atomic<bool> guest_was_running_{true};
  std::atomic<GuestEnd> guest_end_{GuestEnd::none};
  std::atomic<unsigned> resets_{0};
};

}  // namespace pageferry
