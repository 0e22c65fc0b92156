// SourceMigration: the freeze half, and with a DestinationLink the whole way.
//
//   open        monitor, process, preflight, lock, control socket, records; opens the next epoch
//               for a VM that has none
//   setup       attempt directory, page file, capture; manifest and prepare file, so that a
//               destination can begin
//   brownout    passes while the guest runs, until it converges and the destination is prepared
//   blackout    the rest, device state, commit: everything durable
//   switchover  SHUT(0), `completed`, released.N: from here the source host is free
//   wait        (with a destination) until its running.N+1 is on the store; the source VMM is
//               ended; then until resident
//
// Before SHUT(0) every failure ends with the guest running here as before. After it nothing
// continues the guest directly: when the destination fails, the source competes for the next epoch
// like anybody else (rule 5) and continues from the memory it holds.
//
// Thread rule: run() on one thread; the control server's thread calls request_abort(). Lifetime:
// options are copied, the reporter and the clock outlive it.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "pager/page_file_writer.h"
#include "tools/pageferry/base_image.h"
#include "tools/pageferry/control_server.h"
#include "tools/pageferry/destination_link.h"
#include "tools/pageferry/hand_off.h"
#include "tools/pageferry/options.h"
#include "tools/pageferry/reporter.h"
#include "transport/storage_wait.h"
#include "transport/vm_lock.h"
#include "vmstate/capture.h"
#include "vmstate/manifest.h"
#include "vmstate/source_vmm.h"

namespace pageferry {

class SourceMigration final : private CaptureObserver {
 public:
  // `destination` nullptr: `send`.
  SourceMigration(SourceOptions options, CommonOptions common,
                  const DestinationOptions* destination, Reporter& reporter, const Clock& clock);
  ~SourceMigration() override;

  ExitCode run();

 private:
  Result<void> open();
  Result<void> check_the_store();
  Result<void> open_epoch();
  Result<void> setup();
  Result<void> make_page_file();
  Result<void> find_base();
  Result<void> settle_base();
  void go_without_base(const std::string& why);
  Result<void> write_manifest();
  Result<void> write_file(const std::string& name, std::vector<std::byte> bytes);
  WaitBounds store_bounds() const { return {store_stop_.get(), Deadline::never()}; }
  Result<void> start_destination();
  Result<void> blackout();
  Result<void> freeze_and_commit();
  Result<void> commit_image();
  Result<void> read_back_if_asked();
  bool stop_before_shut();
  void remove_the_attempt();
  Result<void> switchover();
  Result<void> note_disks();
  ExitCode fail_before_shut(const Error& error);
  ExitCode after_release();
  ExitCode wait_for_running();
  ExitCode wait_for_resident();
  void close_page_file();
  void let_others_move_on();
  ExitCode destination_failed(const Error& error);
  ExitCode bring_the_rest();
  RecoverCommand recover_command() const;
  ExitCode take_back();
  Result<void> drop_image();
  Result<Claim> claim_for_source();
  std::string timeout_text(const Error& cause) const;
  void end_source();
  ExitCode finish(ExitCode code);

  Result<void> poll_destination();
  Result<void> check_machines();
  void hint_preload();
  Result<std::string> request_abort();
  void add_source_figures();
  void add_destination_figures(const nlohmann::json& running);

  // CaptureObserver
  Verdict on_progress(const Progress& progress) override;
  bool may_switch() override;
  void on_pass(std::uint64_t pass) override;
  Verdict on_not_converging(const Progress& progress) override;

  const SourceOptions options_;
  const CommonOptions common_;
  const DestinationOptions* const destination_options_;
  Reporter& reporter_;
  const Clock& clock_;
  const Nanoseconds started_;

  const std::string& name() const { return vm_->facts().name; }
  const ProcessIdentity& vmm() const { return vm_->facts().process.identity; }

  std::unique_ptr<SourceVmm> vm_;
  std::optional<VmLock> lock_;  // let go of once others may move the guest on
  CancelSignal stop_;           // gives up repeating a record: the guest stays paused then
  std::unique_ptr<HandOff> hand_off_;
  Epoch epoch_{0};
  std::shared_ptr<Attempt> attempt_;  // shared with steps on the store that may be left behind
  // Ends every wait for the store before SHUT(0).
  std::shared_ptr<CancelSignal> store_stop_ = std::make_shared<CancelSignal>();
  RandomId commit_id_;
  std::shared_ptr<BaseImage> base_;  // shared as attempt_ is; none: everything is written
  // Somebody who asks for an abort may come while run() makes or drops these two: both are under the
  // mutex when they are set or reset.
  std::mutex stop_mutex_;
  bool past_shut_ = false;  // also when capture_ is gone; under the mutex
  std::unique_ptr<PageFileWriter> writer_;
  std::unique_ptr<Capture> capture_;
  std::unique_ptr<DestinationLink> link_;
  std::atomic<bool> abort_asked_{false};
  std::unique_ptr<ControlServer> control_;  // its thread uses what stands above: destroyed first
  bool destination_prepared_ = false;
  bool machines_compared_ = false;
  std::optional<Error> destination_error_;
  bool timed_out_ = false;
  bool told_not_converging_ = false;
  nlohmann::json destination_machine_;
  GuestState released_state_;
  std::vector<DiskFile> disks_;  // as they were once the guest was stopped and its images inactive
  Nanoseconds committed_at_{0};
  Nanoseconds released_at_{0};
  nlohmann::json result_ = nlohmann::json::object();
  nlohmann::json split_ = nlohmann::json::object();
};

}  // namespace pageferry
