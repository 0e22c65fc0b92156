// QemuCapture: we are the migration peer of a running, unmodified QEMU. QEMU tracks dirty pages and
// streams them; we put each page into a PageSink and keep the device state opaque. We, not luck,
// decide when the guest is stopped.
//
// Order of calls (each once; a failure at any point before commit_source() leaves the guest running
// at the source after abort()):
//
//   start()          set capabilities and parameters, getfd, migrate; returns once configuration and
//                    RAM block list are known
//   run_brownout()   passes while the guest runs, until it converges and the observer permits the
//                    switch; returns with the guest stopped (state pre-switchover)
//   run_blackout()   last dirty pages and device state; returns with QEMU waiting for SHUT (guest
//                    stopped, disks inactive)
//   commit_source()  sends SHUT(0), waits until QMP says `completed`: from here QEMU cannot resume
//                    by itself
//   abort()          any time before commit_source(): closes the stream / migrate_cancel, waits
//                    until the guest is as it was before
//
// Sources: QEMU docs/devel/migration, and qemu-migration-stream facts in
// docs/qemu-migration-stream.md of this project.
//
// Thread rule: calls from one thread; request_stop() and stats() from any. The sink is used by one
// thread of the capture's own, from start() until run_blackout() or abort() has returned, whatever
// they return; an error of the sink is returned by the call that runs. Lifetime: the QmpClient, the
// PageSink and the observer outlive the capture. Destroying an unfinished capture aborts it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "pager/page_sink.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/device_state.h"
#include "vmstate/qemu_source_events.h"
#include "vmstate/qmp_client.h"

namespace pageferry {

struct CaptureOptions {
  std::uint64_t bandwidth_limit_bytes_per_s = 0;  // 0 = none
  // The guest may be stopped this long, as far as it can be predicted.
  Milliseconds max_downtime{300};
  // Aimed at first; grows towards max_downtime while passes do not converge.
  Milliseconds target_downtime{30};
  unsigned passes_max = 60;  // then: not_converging is reported to the observer
};

// What run_brownout asks and tells while the guest runs. Called from the thread in run_brownout().
class CaptureObserver {
 public:
  virtual ~CaptureObserver() = default;
  struct Progress {  // QEMU's own numbers (query-migrate), bytes and pages
    std::string status;
    std::uint64_t ram_total_bytes = 0;
    std::uint64_t ram_remaining_bytes = 0;
    std::uint64_t ram_transferred_bytes = 0;
    std::uint64_t duplicate_pages = 0;
    std::uint64_t dirty_pages_per_s = 0;
    std::uint64_t dirty_sync_count = 0;
    std::uint64_t bandwidth_bytes_per_s = 0;  // measured by us
  };
  enum class Verdict : std::uint8_t { go_on, switch_now, abort };
  // About four times a second. switch_now: stop the guest whatever is left (--timeout-action
  // switch); abort: run_brownout() returns Errc::canceled.
  virtual Verdict on_progress(const Progress& progress) = 0;
  // May the guest be stopped now, as far as the other parts are concerned (destination prepared,
  // store healthy)?
  virtual bool may_switch() = 0;
  // QEMU has begun pass number `pass` (its dirty-sync-count) over the memory; heard a moment later.
  virtual void on_pass([[maybe_unused]] std::uint64_t pass) {}
  // The guest dirties memory faster than the limits allow for (pass limit reached). Asked again
  // about once a second while it lasts.
  virtual Verdict on_not_converging(const Progress& progress) = 0;
};

struct CaptureStats {
  std::uint64_t passes = 0;
  std::uint64_t pages_stored = 0;
  std::uint64_t pages_zero = 0;
  std::uint64_t blackout_pages = 0;
  std::uint64_t bytes_received = 0;
  // monotonic clock when QMP's STOP event arrived (paused before: state pre-switchover)
  Nanoseconds stopped_at{0};
  Nanoseconds continued_at{0};       // migrate-continue sent
  Nanoseconds ram_complete_at{0};    // RAM END seen
  Nanoseconds state_complete_at{0};  // device state complete
  bool guest_was_running = true;     // before the migration
  // Why an error says that the guest will not run on; none: it is another error.
  GuestEnd guest_end = GuestEnd::none;
  // the guest rebooted during the migration; that alone is no error
  std::uint64_t guest_resets = 0;
  Nanoseconds sink_time{0};  // spent outside of receiving: parsing and the sink
};

class QemuCapture {
 public:
  static Result<std::unique_ptr<QemuCapture>> create(QmpClient& qmp, PageSink& sink,
                                                     CaptureObserver& observer,
                                                     CaptureOptions options);
  virtual ~QemuCapture() = default;

  virtual Result<void> start() = 0;
  // Valid after start(): machine_type, configuration, layout. Complete after run_blackout().
  virtual const QemuState& state() const = 0;
  // Errors: canceled (request_stop or verdict abort), vmm (QEMU failed, guest shut down / panicked
  // / stopped on I/O error: the message says which), gone, and whatever the sink returned.
  virtual Result<void> run_brownout() = 0;
  virtual Result<void> run_blackout() = 0;
  // After an error here the outcome is unknown: rule 8, the guest stays paused, see recover.
  virtual Result<void> commit_source() = 0;
  // Blocks as long as the sink does: cancel the sink first. Errors: invalid (SHUT(0) was sent),
  // vmm/timeout/gone (QEMU did not say that the migration has ended and the guest is as before; the
  // stream is closed all the same, which is all QEMU needs).
  virtual Result<void> abort() = 0;
  // Makes a running call return Errc::canceled soon. Any thread, also from the thread that guards
  // the blackout limit: it closes the stream in one atomic step against commit_source's SHUT(0);
  // returns false when SHUT(0) was already sent.
  virtual bool request_stop() = 0;
  // Whether commit_source() may have sent SHUT(0). If not, QEMU has resumed or will resume the guest, and abort() is what is left to do.
  virtual bool shut_was_sent() const = 0;
  virtual CaptureStats stats() const = 0;
};

}  // namespace pageferry
