// QemuStreamReader: the thread between the channel and the page sink: receive, parse, store, until
// the stream is complete or fails. The controlling thread tells it when passes begin and when the
// guest was stopped, and waits for its milestones.
//
//   QEMU --- CaptureChannel ---> [ receive | StreamParser | PageSink ]
//                                     ^ pass, blackout, gate   v milestone, counters
//
// Pages lie in the receive buffer until the sink has copied them.
//
// The gate holds back pass 1 near its end, for QEMUs that cannot be told to wait (before 8.1):
// closed, the reader stops reading when fewer than the given number of pages (at most half of all)
// are left, tells so, and goes on when the gate is opened.
//
// A failure of the sink or the parser closes the channel, so QEMU gives up at once and the guest
// runs on.
//
// Thread rule: the public functions from any thread, except start/join: the owner's. The sink and
// the parser are used by the reader's thread alone. Lifetime: channel, sink and clock outlive the
// reader; its destructor closes the channel and joins.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "pager/page_sink.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/capture_channel.h"
#include "vmstate/device_state.h"
#include "vmstate/qemu_ram_blocks.h"
#include "vmstate/qemu_stream_parser.h"

namespace pageferry {

class QemuStreamReader final : private qemu_stream::StreamEvents {
 public:
  enum class Milestone : std::uint8_t {
    begun,
    setup_complete,
    ram_complete,
    state_complete,
    failed
  };
  struct Counters {
    std::uint64_t bytes = 0;
    std::uint64_t pages = 0;
    std::uint64_t zero_pages = 0;
    std::uint64_t blackout_pages = 0;
    Nanoseconds working{0};  // in parser and sink; the rest of the time went into waiting for QEMU
  };

  // `blocks` as QEMU's monitor lists them: the stream does not say which page size backs a block.
  QemuStreamReader(CaptureChannel& channel, PageSink& sink, const Clock& clock,
                   std::vector<QemuRamBlock> blocks);
  ~QemuStreamReader() override;
  QemuStreamReader(const QemuStreamReader&) = delete;
  QemuStreamReader& operator=(const QemuStreamReader&) = delete;

  void start();
  // Blocks until the thread ended: after the stream's end, or close() of the channel and as soon as
  // the sink lets go.
  void join();

  // A dirty sync happened: what comes from now on belongs to a later pass.
  void begin_pass() { passes_begun_.fetch_add(1); }
  // The guest is stopped. What is read from now on goes to the tail.
  void begin_blackout() { blackout_ = true; }

  // To be called before start(). See above.
  void close_gate(std::uint64_t pages_left);
  void open_gate();
  bool at_gate() const;

  // Waits until at least `milestone` or failure; nullopt at the deadline. On failure: its Error.
  Result<bool> wait_for(Milestone milestone, Deadline deadline);
  // failed: the first error; else nullopt.
  std::optional<Error> failure() const;

  // A copy; complete from milestone setup_complete on (device state from state_complete on).
  QemuState state_after_setup() const;
  QemuState take_state();  // after state_complete and join()

  Counters counters() const;
  Nanoseconds ram_complete_at() const { return Nanoseconds(ram_complete_ns_.load()); }
  Nanoseconds state_complete_at() const { return Nanoseconds(state_complete_ns_.load()); }

 private:
  void run();
  Result<void> read_stream();
  Result<void> tell_sink();
  Result<void> wait_at_gate();
  std::size_t slice_before_gate(std::size_t available) const;
  void reach(Milestone milestone);
  void publish_counters(std::uint64_t bytes_read, Nanoseconds worked);

  Result<void> on_ping(std::uint32_t value) override;
  Result<void> on_setup_complete(const QemuState& state) override;
  void on_ram_end() override;

  CaptureChannel* channel_;
  PageSink* sink_;
  const Clock* clock_;
  std::vector<QemuRamBlock> blocks_;

  // The reader thread's.
  qemu_stream::StreamParser parser_;
  std::uint32_t passes_told_ = 0;
  std::uint32_t pass_number_ = 0;
  bool sink_begun_ = false;
  bool blackout_told_ = false;
  std::uint64_t pages_total_ = 0;
  std::uint64_t pages_before_blackout_ = 0;

  // From any thread.
  std::atomic<std::uint32_t> passes_begun_{0};
  std::atomic<bool> blackout_{false};
  std::atomic<std::uint64_t> bytes_{0};
  std::atomic<std::uint64_t> pages_{0};
  std::atomic<std::uint64_t> zero_pages_{0};
  std::atomic<std::uint64_t> blackout_pages_{0};
  std::atomic<std::int64_t> working_ns_{0};
  std::atomic<std::int64_t> ram_complete_ns_{0};
  std::atomic<std::int64_t> state_complete_ns_{0};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Milestone milestone_ = Milestone::begun;  // under mutex_, as all below
  std::optional<Error> failure_;
  QemuState state_;
  std::uint64_t gate_pages_left_ = 0;  // 0: the gate is open
  bool at_gate_ = false;

  std::thread thread_;
};

}  // namespace pageferry
