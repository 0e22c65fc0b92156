// Capture: how a guest leaves its VMM, whatever kind of VMM that is: pages while it runs, the rest and the device state while it is
// stopped, and the one step after which the VMM does not resume it by itself. QemuCapture and HookCapture are the two kinds.
//
// Order of calls (each once; a failure at any point before commit_source() leaves the guest running at the source after abort()):
//
//   start()          the VMM tracks or streams its memory; the layout is known
//   run_brownout()   passes while the guest runs, until it converges and the observer permits the switch
//   run_blackout()   last dirty pages and device state, the guest stopped
//   commit_source()  from here the VMM cannot resume by itself
//   abort()          any time before commit_source(): the guest is as it was before
//
// Thread rule: calls from one thread; request_stop() and stats() from any. The sink is used by one thread at a time, from start() until
// run_blackout() or abort() has returned, whatever they return. Lifetime: VMM connection, PageSink and observer outlive the capture.
// Destroying an unfinished capture aborts it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page_sink.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/manifest.h"
#include "vmstate/qemu_source_events.h"

namespace pageferry {

struct CaptureOptions {
  std::uint64_t bandwidth_limit_bytes_per_s = 0;  // 0 = none
  // The guest may be stopped this long, as far as it can be predicted.
  Milliseconds max_downtime{300};
  // Aimed at first; grows towards max_downtime while passes do not converge.
  Milliseconds target_downtime{30};
  unsigned passes_max = 60;  // then: not_converging is reported to the observer
  std::uint64_t epoch = 0;   // that is released by commit_source()
  // From the stop of the guest to commit_source(); 0: none. A VMM that can keeps it too, should we be stopped ourselves.
  Milliseconds blackout_limit{0};
  // Id of an attempt of this VM that the guest was restored from and whose image is still on the store: where the VMM knows every
  // page that was written since, the first pass has only those (Capture::base_in_use()). Empty: everything.
  std::string base_attempt{};
  // The memory in that image, backing pages included: a guest whose memory is laid out otherwise is written whole.
  MemoryLayout base_layout{};
  // How fast the sink's store has been, bytes/s, 0: not known yet. From any thread. Absent: it is measured from the passes.
  std::function<std::uint64_t()> sink_bytes_per_s{};
};

// What run_brownout asks and tells while the guest runs. Called from the thread in run_brownout().
class CaptureObserver {
 public:
  virtual ~CaptureObserver() = default;
  struct Progress {  // bytes and pages; QEMU's own (query-migrate), or of PageOut
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
  // Pass number `pass` over the memory has begun; heard a moment later.
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

// The way of a guest out of its VMM. Calls from one thread; request_stop() and stats() from any.
class Capture {
 public:
  virtual ~Capture() = default;

  // Begins; returns once layout() is known.
  virtual Result<void> start() = 0;
  virtual const MemoryLayout& layout() const = 0;
  // What the capture knows of the machine, for the manifest. After start().
  virtual void describe(VmManifest& manifest) const = 0;
  // The file `state`; after start() the file `prepare`, where the VMM's kind has one, else empty.
  virtual std::vector<std::byte> encode_state() const = 0;
  // While the guest runs. Errors: canceled (request_stop or verdict abort), vmm (the VMM failed, or its guest ended: the message says
  // which), gone, and whatever the sink returned.
  virtual Result<void> run_brownout() = 0;
  // The guest is stopped: what is left, and the device state.
  virtual Result<void> run_blackout() = 0;
  // After an error here the outcome is unknown: rule 8, the guest stays paused, see recover.
  virtual Result<void> commit_source() = 0;
  // Blocks as long as the sink does: cancel the sink first. Errors: invalid (it was committed), vmm/timeout/gone (the VMM did not say
  // that the guest is as before; it will be all the same, as soon as the VMM sees its connection closed).
  virtual Result<void> abort() = 0;
  // Makes a running call return Errc::canceled soon. Any thread, also the one that guards the blackout limit: in one atomic step
  // against commit_source(); false when that came first.
  virtual bool request_stop() = 0;
  // Whether commit_source() may have told the VMM. If not, the VMM has resumed or will resume the guest, and abort() is what is left to do.
  virtual bool shut_was_sent() const = 0;
  // After start(): the VMM proves that the first pass holds every page that was written since base_attempt. Else it holds all pages.
  virtual bool base_in_use() const { return false; }
  virtual CaptureStats stats() const = 0;
};

}  // namespace pageferry
