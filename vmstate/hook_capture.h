// HookCapture: the guest of a VMM with a hook leaves it. The hook says which pages were written, PageOut reads them from outside and puts
// them into the sink, and we decide when the guest is stopped.
//
//   start()          TRACK: every page counts as written; or those that were written since the base
//   run_brownout()   live passes of PageOut until the rest fits into the allowed downtime and the observer permits the switch; PAUSE
//   run_blackout()   the last pass, the device state
//   commit_source()  COMMIT: from here the VMM resumes only for the owner of a later epoch
//   abort()          closes the connection: the hook resumes the guest; waits until it says that it runs
//
// A guest that is itself still being restored: the hook names no page that is missing, so none is read; the pager that restores it goes on
// beside this, and the guest is not stopped before every page was there when a collection began (the hook would refuse it, too).
//
// A pass runs on a thread of its own, so that a store that hangs keeps nobody from hearing a cancel, a timeout or the destination.
//
// Thread rule and lifetime: capture.h; the client and the memory outlive it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "pager/dirty_source.h"
#include "pager/page_out.h"
#include "transport/cancel_signal.h"
#include "vmstate/capture.h"
#include "vmstate/hook_client.h"
#include "vmstate/hook_memory.h"

namespace pageferry {

// The written pages, as the hook collects them.
class HookDirtySource final : public DirtySource {
 public:
  // Lifetime: the client outlives it.
  explicit HookDirtySource(HookClient& client) : DirtySource(client.vm().layout), client_(client) {}
  ~HookDirtySource() override = default;

  // Before start(PagesAtStart::not_written): what the hook calls the base.
  void begin_from(std::string attempt) { since_attempt_ = std::move(attempt); }

 private:
  Result<void> begin() override;
  Result<void> fetch(DirtyBitmap& dirty) override;
  Result<void> end() override;

  const MonotonicClock clock_;
  HookClient& client_;
  std::string since_attempt_;
};

class HookCapture final : public Capture, private GuestPages {
 public:
  // `socket_path`: where abort() looks whether the guest runs again.
  HookCapture(HookClient& client, std::string socket_path, HookMemory& memory, PageSink& sink,
              CaptureObserver& observer, CaptureOptions options);
  ~HookCapture() override;

  Result<void> start() override;
  const MemoryLayout& layout() const override { return client_.vm().layout; }
  void describe(VmManifest& manifest) const override;
  // Empty until the guest is stopped: a destination needs nothing of it before.
  std::vector<std::byte> encode_state() const override;
  Result<void> run_brownout() override;
  Result<void> run_blackout() override;
  Result<void> commit_source() override;
  Result<void> abort() override;
  bool request_stop() override;
  bool shut_was_sent() const override { return commit_sent_; }
  // Settled when start() has returned.
  bool base_in_use() const override { return base_in_use_; }
  CaptureStats stats() const override;

 private:
  using Verdict = CaptureObserver::Verdict;
  // GuestPages, for PageOut: the same memory, counted.
  Result<std::uint64_t> put(PageRun run, PageSink& sink) override;

  Result<void> start_tracking();
  Result<void> note_missing();
  Result<PageOut::LivePass> live_pass();
  Result<Verdict> tell_progress();
  Result<bool> may_stop_guest(const PageOut::LivePass& live);
  Result<Verdict> tell_not_converging();
  Result<void> stop_guest();
  void share(HookPhase phase);
  CaptureObserver::Progress progress() const;
  void join();

  const MonotonicClock clock_;
  HookClient& client_;
  const std::string socket_path_;
  HookMemory& memory_;
  PageSink& sink_;
  CaptureObserver& observer_;
  const CaptureOptions options_;
  CancelSignal cancel_;
  HookDirtySource source_;
  PageOut page_out_;

  std::thread pass_thread_;
  std::mutex mutex_;
  std::condition_variable pass_ended_;
  std::optional<Result<PageOut::LivePass>> pass_result_;  // under mutex_

  std::optional<HookProgressWriter> shared_progress_;
  const Nanoseconds started_at_ = clock_.now();
  std::vector<std::byte> state_;
  std::atomic<bool> commit_sent_{false};
  std::atomic<std::uint64_t> pages_put_{0};
  std::atomic<std::uint64_t> pass_pages_put_{0};
  std::uint64_t pass_pages_ = 0;         // to be put in this pass
  std::uint64_t dirty_pages_per_s_ = 0;  // over the last pass
  bool switch_now_ = false;
  bool base_in_use_ = false;
  bool pages_missing_ = false;        // when this pass began
  std::uint32_t passes_missing_ = 0;  // that began so
  Nanoseconds told_not_converging_at_{0};

  // For stats(), from any thread.
  std::atomic<std::uint64_t> passes_{0};
  std::atomic<std::uint64_t> blackout_pages_{0};
  std::atomic<Nanoseconds::rep> stopped_at_{0};
  std::atomic<Nanoseconds::rep> ram_complete_at_{0};
  std::atomic<Nanoseconds::rep> state_complete_at_{0};
};

}  // namespace pageferry
