// What a decision does, act by act: end a VMM, attach to one that waits for pages, claim, load, let run. recovery.cc has the rounds.
#include "tools/pageferry/recovery.h"

#include <fmt/format.h>

#include "tools/pageferry/attempt_files.h"
#include "vmstate/hook_vmm_end.h"
#include "vmstate/qemu_spawn.h"
#include "vmstate/run_directory.h"

namespace pageferry {
namespace {

constexpr Seconds kAttachBound{60};

}  // namespace

Result<void> Recovery::end_vmm(VmmLook& vmm) {
  PF_CHECK(vmm.view.process.has_value());
  const std::string socket = vmm.socket();
  if (vmm.hook) {
    // Told, where it can be told: it may have to tidy up.
    auto mover = HookClient::connect(socket, HookClient::Role::mover,
                                     Deadline::after(clock_, kVmmQueryBound));
    PF_TRY(end_hook_vmm(*vmm.view.process, mover ? mover->get() : nullptr));
  } else {
    PF_TRY(pageferry::end_qemu(*vmm.view.process, vmm.qmp.get(), EndBounds{}));
  }
  const std::string directory = socket.substr(0, socket.rfind('/'));  // refused if not one of ours
  [[maybe_unused]] const auto removed = remove_run_directory(command_.common.run_dir, directory);
  return {};
}

Result<void> Recovery::continue_guest(VmmLook& vmm, Epoch epoch) {
  const Deadline deadline = Deadline::after(clock_, kVmmQueryBound);
  if (hook_restore_) return hook_restore_->resume(raw(epoch), deadline);
  if (vmm.hook) {
    PF_ASSIGN(const auto mover,
              HookClient::connect(vmm.hook->socket, HookClient::Role::mover, deadline));
    return mover->resume(raw(epoch), deadline);
  }
  PF_TRY(vmm.qmp->execute("cont", nlohmann::json::object(), deadline));
  return {};
}

Result<void> Recovery::open_pages(const GuestState& state) {
  if (!state.image) {
    return fail(Errc::not_found, "the VMM waits for pages and no image is named in the records");
  }
  PF_ASSIGN(attempt_, hand_off_->directory().open_attempt(state.image->attempt));
  PF_ASSIGN(reader_, open_attempt_pages(*attempt_, command_.common.store_faults, clock_, {}));
  return check_commit(*reader_, state.image->commit);
}

Result<QemuState> Recovery::open_image(const GuestState& state) {
  PF_TRY(open_pages(state));
  return read_attempt_state(*attempt_, kStateFileName);
}

// What is loaded there must be what the records name: its pages come from that image and no other.
Result<void> Recovery::attach_hook(const HookLook& hook, const GuestState& state) {
  PF_TRY(open_pages(state));
  if (!attempt_->name.ends_with("." + hook.attempt_id)) {
    return fail(Errc::invalid, fmt::format("VMM pid {} was given attempt {}, the records name {}",
                                           hook.process.pid, hook.attempt_id, attempt_->name));
  }
  const Deadline deadline = Deadline::after(clock_, kAttachBound);
  PF_ASSIGN(auto client, HookClient::connect(hook.socket, HookClient::Role::restorer, deadline));
  hook_restore_ =
      std::make_unique<HookRestore>(std::move(client), command_.destination.order, clock_);
  return hook_restore_->serve(*reader_, deadline);
}

Result<RestoreOptions> Recovery::restore_options(const std::string& directory) const {
  RestoreOptions options;
  options.order = command_.destination.order;
  PF_ASSIGN(const RandomId id, RandomId::make());
  constexpr std::size_t kIdChars = 8;
  // A monitor may stand in a directory that is none of ours.
  if (directory.starts_with(command_.common.run_dir + "/")) options.run_directory = directory;
  options.channel_socket_path = directory + "/pages-" + id.hex().substr(0, kIdChars) + ".sock";
  return options;
}

// Nothing to do where restore_ serves already: what began without the monitor goes on with it.
Result<void> Recovery::attach(VmmLook& vmm, const GuestState& state) {
  if (restore_ || hook_restore_) return {};
  if (vmm.hook) return attach_hook(*vmm.hook, state);
  PF_ASSIGN(const QemuState qemu_state, open_image(state));
  const std::string& socket = vmm.qmp->socket_path();
  PF_ASSIGN(const RestoreOptions options, restore_options(socket.substr(0, socket.rfind('/'))));
  PF_ASSIGN(restore_, QemuRestore::create(*vmm.qmp, options));
  return restore_->attach(qemu_state, *reader_, Deadline::after(clock_, kAttachBound));
}

Result<Recovery::Verdict> Recovery::run_and_continue(const Decision& decision, VmmLook& vmm,
                                                     const OwnershipSnapshot& snapshot) {
  if (vmm.waits_for_pages()) PF_TRY(attach(vmm, image_for(snapshot, decision.epoch)));
  if (decision.action == Action::run_and_continue) {
    PF_TRY(hand_off_->run(decision.epoch, *vmm.view.process));
  }
  PF_TRY(continue_guest(vmm, decision.epoch));
  return serve(vmm, snapshot);
}

Result<Recovery::Verdict> Recovery::claim_and_continue(const Decision& decision, VmmLook& vmm) {
  PF_TRY(check_disks_unchanged(decision.state.disks));
  PF_ASSIGN(const Claim claim, hand_off_->claim(decision.epoch, *vmm.view.process));
  if (claim == Claim::lost) return Verdict{};
  PF_TRY(hand_off_->run(decision.epoch, *vmm.view.process));
  if (vmm.hook && vmm.waits_for_pages()) PF_TRY(attach(vmm, decision.state));
  PF_TRY(continue_guest(vmm, decision.epoch));
  result_["destination"] = vmm.where();
  return Verdict{};
}

Result<Recovery::Verdict> Recovery::load_and_run(const Decision& decision) {
  migration_ = std::make_unique<DestinationMigration>(command_.destination, command_.common,
                                                      *hand_off_, clock_);
  PF_TRY(migration_->prepare(decision.state.image->attempt));
  PF_ASSIGN(const TakeOver outcome, migration_->take_over(decision.epoch, decision.state));
  if (outcome == TakeOver::lost) {
    return refuse(ExitCode::lost_claim, "another candidate won the claim");
  }
  result_["destination"] = migration_->destination_json();
  result_["claim"] = {{"epoch", raw(decision.epoch)}, {"owner", hand_off_->host().name}};
  if (auto announced = migration_->announce(); !announced) {
    reporter_.warning(announced.error().message);
  }
  if (migration_->can_be_moved_on()) when_serving_(decision.epoch);
  PF_TRY(migration_->finish(
      [this](const nlohmann::json& progress) { reporter_.progress("page-in", progress); }));
  for (const std::string& warning : migration_->settle()) reporter_.warning(warning);
  const nlohmann::json figures = migration_->restore_json();
  for (const auto& [key, value] : figures.items()) result_[key] = value;
  return Verdict{Round::finished, ExitCode::done};
}

}  // namespace pageferry
