// Recovery: brings a VM that something left half-way to a known state, on this host, by the table
// of docs/ownership-protocol.md. Also what `receive` is: nobody runs the guest, its image is on the
// store, so load it, claim, run.
//
// Each round looks at the VMMs of this host first and reads the records then (that order is part of
// the rules), asks decide(), and does the one action it names. It ends when the guest runs here and
// every page is there, or when nothing may be done here.
//
// Before all that it brings pages that a guest here waits for (EarlyService), and goes on until the
// restore does: a monitor may answer only then. Where only the restore can bring them, the restore itself
// begins before the monitor is asked.
//
// Thread rule: one thread; request_stop() from any. Lifetime: reporter and clock outlive it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tools/pageferry/destination_migration.h"
#include "tools/pageferry/early_service.h"
#include "tools/pageferry/hand_off.h"
#include "tools/pageferry/options.h"
#include "tools/pageferry/reporter.h"
#include "tools/pageferry/vmm_look.h"
#include "vmstate/hook_restore.h"
#include "vmstate/qemu_restore.h"

namespace pageferry {

class Recovery {
 public:
  Recovery(RecoverCommand command, Reporter& reporter, const Clock& clock)
      : command_(std::move(command)), reporter_(reporter), clock_(clock) {}

  // The caller holds the VM's locks. Reports errors itself; the caller reports the end.
  ExitCode run_to_the_end();
  // Only brings the missing pages of a guest that runs here, whoever else moves it on. The caller holds the serving lock.
  ExitCode serve_only();
  // Called when all that is left is to bring pages of a guest that may be moved on meanwhile, whose epoch this is.
  void when_serving(std::function<void(Epoch)> call) { when_serving_ = std::move(call); }
  void request_stop();
  const nlohmann::json& result() const { return result_; }

 private:
  enum class Round : std::uint8_t { again, finished };
  struct Verdict {
    Round round = Round::again;
    ExitCode code = ExitCode::done;
  };

  bool open();
  Result<Verdict> one_round();
  Result<Verdict> serve_the_named();
  void begin_early_service(const OwnershipSnapshot& snapshot);
  Result<void> begin_early(const OwnershipSnapshot& snapshot);
  Result<void> restore_without_monitor(const MissingPages& missing);
  std::uint64_t pages_placed() const;
  Result<VmmLook> look_patiently(const ProcessIdentity& process, const std::string& socket);
  Result<std::vector<VmmLook>> look_around(const OwnershipSnapshot& before);
  Result<Verdict> act(const Decision& decision, VmmLook* vmm, const OwnershipSnapshot& snapshot);
  Result<Verdict> run_and_continue(const Decision& decision, VmmLook& vmm,
                                   const OwnershipSnapshot& snapshot);
  Result<Verdict> claim_and_continue(const Decision& decision, VmmLook& vmm);
  Result<Verdict> load_and_run(const Decision& decision);
  Result<Verdict> serve(VmmLook& vmm, const OwnershipSnapshot& snapshot);
  Result<void> free_image(const OwnershipSnapshot& snapshot);
  Result<bool> cancel_abandoned(const std::vector<VmmLook>& looks);
  Result<void> end_stale(std::vector<VmmLook>& looks, const OwnershipSnapshot& snapshot);
  Result<QemuState> open_image(const GuestState& state);
  Result<RestoreOptions> restore_options(const std::string& directory) const;
  Result<void> attach(VmmLook& vmm, const GuestState& state);
  Result<void> attach_hook(const HookLook& hook, const GuestState& state);
  Result<void> open_pages(const GuestState& state);
  Result<void> serve_to_the_end(VmmLook& vmm);
  Result<void> end_vmm(VmmLook& vmm);
  Result<void> continue_guest(VmmLook& vmm, Epoch epoch);
  Result<bool> end_empty(std::vector<VmmLook>& looks);
  Verdict wait_a_little(const Decision& decision);
  Verdict refuse(ExitCode code, const std::string& reason);

  const RecoverCommand command_;
  Reporter& reporter_;
  const Clock& clock_;
  CancelSignal stop_;
  std::function<void(Epoch)> when_serving_ = [](Epoch) {};
  std::unique_ptr<HandOff> hand_off_;
  std::optional<Attempt> attempt_;
  std::unique_ptr<PageFileReader> reader_;
  std::unique_ptr<EarlyService> early_;
  bool early_tried_ = false;
  std::string why_not_early_;  // the monitor may be silent for it
  std::unique_ptr<QemuRestore> restore_;
  std::unique_ptr<HookRestore> hook_restore_;
  std::unique_ptr<DestinationMigration> migration_;
  std::optional<Nanoseconds> waiting_since_;
  nlohmann::json result_ = nlohmann::json::object();
};

}  // namespace pageferry
