// The rounds. What decide() says is done literally; what it does not say is not done.
#include "tools/pageferry/recovery.h"

#include <dirent.h>
#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <filesystem>

namespace pageferry {
namespace {

constexpr Seconds kWithoutMonitorBound{20};
constexpr Seconds kWaitBound{60};
constexpr int kWaitIntervalMs = 100;
// How long a monitor that does not answer is asked again while missing pages are being placed.
constexpr Seconds kEarlyBound{120};

// QEMUs that this program started for the VM on this host and that still listen, whatever the
// records say of them.
std::vector<std::string> leftover_monitors(const std::string& run_dir, const std::string& vm_name) {
  std::vector<std::string> sockets;
  std::error_code ignored;
  for (const auto& entry :
       std::filesystem::directory_iterator(fmt::format("{}/{}", run_dir, vm_name), ignored)) {
    const auto socket = entry.path() / "pageferry-qmp.sock";
    if (std::filesystem::exists(socket, ignored)) sockets.push_back(socket.string());
  }
  return sockets;
}

}  // namespace

bool Recovery::open() {
  auto opened = HandOff::open(command_.destination.store, command_.destination.name,
                              VmDirectory::IfMissing::refuse, stop_);
  if (!opened) {
    reporter_.error(opened.error());
    return false;
  }
  hand_off_ = std::move(*opened);
  return true;
}

ExitCode Recovery::run_to_the_end() {
  if (!open()) return ExitCode::refused;
  while (true) {
    auto verdict = one_round();
    if (!verdict) {
      reporter_.error(verdict.error());
      const bool proved_bad = verdict.error().code == Errc::corrupt;
      return proved_bad ? ExitCode::state_lost : ExitCode::recoverable;
    }
    if (verdict->round == Round::finished) return verdict->code;
  }
}

void Recovery::request_stop() {
  stop_.cancel();
  if (restore_) restore_->request_stop();
  if (hook_restore_) hook_restore_->request_stop();
  if (migration_) migration_->request_stop();
}

// Once: what ends it is no reason to begin again.
void Recovery::begin_early_service(const OwnershipSnapshot& snapshot) {
  if (std::exchange(early_tried_, true)) return;
  const auto begun = begin_early(snapshot);
  if (begun) return;
  const Error& error = begun.error();
  // That VMM has ended, or has every page.
  if (error.code == Errc::gone || error.code == Errc::not_found) return;
  why_not_early_ = error.message;
  // vmm: it refuses, as one does that has just become complete.
  if (error.code != Errc::unsupported && error.code != Errc::vmm) {
    reporter_.warning(
        fmt::format("pages are brought only once the monitor answers: {}", error.message));
  }
}

Result<void> Recovery::begin_early(const OwnershipSnapshot& snapshot) {
  PF_ASSIGN(auto missing, find_missing_pages(command_, *hand_off_, snapshot));
  if (!missing) return {};
  if (missing->kept.map.placement == PagePlacement::stream) {
    return restore_without_monitor(*missing);
  }
  PF_ASSIGN(early_, EarlyService::start(command_, *hand_off_, *missing, clock_));
  return {};
}

std::uint64_t Recovery::pages_placed() const {
  const RestoreStats stats = restore_ ? restore_->stats() : RestoreStats{};
  return stats.pages_demand + stats.pages_prefetched + (early_ ? early_->pages_placed() : 0);
}

// Pages in the stream: whoever serves them is the restore. It learns of the monitor when that answers.
Result<void> Recovery::restore_without_monitor(const MissingPages& missing) {
  PF_ASSIGN(const QemuState qemu_state, open_image(missing.state));
  PF_ASSIGN(const RestoreOptions options, restore_options(missing.kept.run_directory));
  PF_ASSIGN(auto restore, QemuRestore::create_without_monitor(missing.kept.map, options));
  PF_TRY(restore->attach(qemu_state, *reader_, Deadline::after(clock_, kWithoutMonitorBound)));
  restore_ = std::move(restore);
  return {};
}

// A VMM whose lock is held by a thread that waits for a page answers once the page is there; with many of them, after many.
Result<VmmLook> Recovery::look_patiently(const ProcessIdentity& process,
                                         const std::string& socket) {
  const Nanoseconds until = clock_.now() + kEarlyBound;
  while (true) {
    const std::uint64_t placed = pages_placed();
    auto look = look_at_vmm(process, socket, clock_);
    if (look) return look;
    const Errc code = look.error().code;
    if (code != Errc::busy && code != Errc::timeout) return look;
    if (pages_placed() > placed && clock_.now() < until) continue;
    if (why_not_early_.empty()) return look;
    return with_context(std::move(look).error(), why_not_early_);
  }
}

// The VMM of the highest epoch first, then every other one of the guest that is here. Always looked
// at before the records are read again for the decision.
Result<std::vector<VmmLook>> Recovery::look_around(const OwnershipSnapshot& before) {
  std::vector<VmmLook> looks;
  for (const HookLook& hook : find_hook_vmms(command_.common.run_dir, command_.destination.name,
                                             command_.vm, *hand_off_, clock_)) {
    looks.push_back(look_of(hook));
  }
  const auto add = [&](const ProcessIdentity& process, const std::string& socket) -> Result<void> {
    for (const VmmLook& known : looks) {
      if (known.view.process == process) return {};
    }
    PF_ASSIGN(VmmLook look, look_patiently(process, socket));
    if (look.view.state != VmmState::none) looks.push_back(std::move(look));
    return {};
  };
  if (!before.empty()) {
    if (const auto named = vmm_of_highest(before, hand_off_->host())) PF_TRY(add(*named, ""));
    for (auto records = before.epochs.rbegin(); records != before.epochs.rend(); ++records) {
      const GuestState* state = records->released_state();
      if (state == nullptr || !state->memory) continue;
      if (same_boot(state->memory->host, hand_off_->host())) {
        PF_TRY(add(state->memory->process, ""));
      }
    }
  }
  auto sockets = leftover_monitors(command_.common.run_dir, command_.destination.name);
  if (command_.vm && command_.vm->kind == VmmKind::qemu) {
    sockets.push_back(command_.vm->socket);
  }
  for (const std::string& socket : sockets) {
    auto qmp = QmpClient::connect(socket, Deadline::after(clock_, Seconds(2)));
    if (!qmp) continue;  // nobody listens there, or it was looked at above
    auto process = identify_process((*qmp)->peer().pid);
    qmp->reset();
    if (process) PF_TRY(add(*process, socket));
  }
  return looks;
}

Result<Recovery::Verdict> Recovery::one_round() {
  PF_ASSIGN(const OwnershipSnapshot before, hand_off_->read());
  begin_early_service(before);
  PF_ASSIGN(std::vector<VmmLook> looks, look_around(before));
  PF_ASSIGN(const OwnershipSnapshot snapshot, hand_off_->read());
  const auto named = snapshot.empty() ? std::nullopt : vmm_of_highest(snapshot, hand_off_->host());
  PF_ASSIGN(const bool canceled, cancel_abandoned(looks));
  if (canceled) return Verdict{};
  PF_ASSIGN(const bool ended, end_empty(looks));
  if (ended) return Verdict{};
  const ToolMemory memory;
  const auto is_named = [&](const VmmLook& look) { return named && look.view.process == named; };
  // What a paused destination was loaded from, when its own epoch says so.
  for (VmmLook& look : looks) {
    if (look.hook) {
      look.view.loaded = loaded_image(*look.hook, snapshot);
    } else if (is_named(look) && look.view.state == VmmState::paused) {
      look.view.loaded = image_for(snapshot, snapshot.highest()).image;
    }
  }
  std::stable_partition(looks.begin(), looks.end(), is_named);
  const bool named_lives = !looks.empty() && is_named(looks.front());
  if (named_lives && looks.front().view.state == VmmState::running) {
    PF_TRY(end_stale(looks, snapshot));
    return serve(looks.front(), snapshot);
  }
  for (VmmLook& look : looks) {
    if (look.view.state == VmmState::running) return serve(look, snapshot);
    const Decision decision = decide(look.view, snapshot, hand_off_->host(), memory);
    if (decision.action == Action::nothing || decision.action == Action::keep_and_wait) continue;
    PF_ASSIGN(const Verdict verdict, act(decision, &look, snapshot));
    // It runs here now: what only waited for that is stale.
    if (verdict.round == Round::finished && verdict.code == ExitCode::done && is_named(look)) {
      PF_ASSIGN(const OwnershipSnapshot now, hand_off_->read());
      PF_TRY(end_stale(looks, now));
    }
    return verdict;
  }
  if (named_lives) {
    return refuse(ExitCode::recoverable,
                  "the VMM of the highest epoch is here; nothing may be done");
  }
  const Decision decision = decide(VmmView{}, snapshot, hand_off_->host(), memory);
  return act(decision, nullptr, snapshot);
}

// A QEMU in pre-switchover waits for a `migrate-continue` that a dead tool will not send, and does not look at its socket. Nothing was
// sent that it could not take back: the guest resumes. The locks are ours, so the tool is dead.
Result<bool> Recovery::cancel_abandoned(const std::vector<VmmLook>& looks) {
  bool canceled = false;
  for (const VmmLook& look : looks) {
    if (look.migration_status != "pre-switchover") continue;
    reporter_.note("canceling the migration that a dead tool left in pre-switchover");
    PF_TRY(look.qmp->execute("migrate_cancel", nlohmann::json::object(),
                             Deadline::after(clock_, kVmmQueryBound)));
    canceled = true;
  }
  return canceled;
}

// A VMM with a hook that we started and that was given nothing goes on waiting; a QEMU ends by itself when its tool dies. The locks are
// ours, so that tool is dead. One that the user named is the user's.
Result<bool> Recovery::end_empty(std::vector<VmmLook>& looks) {
  bool ended = false;
  for (VmmLook& look : looks) {
    const bool ours = look.socket().starts_with(command_.common.run_dir + "/");
    if (!look.hook || !look.hook->is_empty() || !ours) continue;
    reporter_.note(fmt::format("ending VMM pid {}: prepared by a dead tool, never loaded",
                               look.view.process->pid));
    PF_TRY(end_vmm(look));
    ended = true;
  }
  return ended;
}

// The guest runs in the first of these; what the rules call stale among the others is ended. So is a
// QEMU that still waits for its state: the lock is ours, so its tool is dead, and no claim can be
// won while the guest runs.
Result<void> Recovery::end_stale(std::vector<VmmLook>& looks, const OwnershipSnapshot& snapshot) {
  for (std::size_t i = 1; i < looks.size(); ++i) {
    const Decision decision = decide(looks[i].view, snapshot, hand_off_->host(), ToolMemory{});
    const bool waits_in_vain = looks[i].view.state == VmmState::incoming;
    if (decision.action != Action::end_vmm && !waits_in_vain) continue;
    reporter_.note(
        fmt::format("ending QEMU pid {}: {}", looks[i].view.process->pid,
                    waits_in_vain ? "prepared by a dead tool, never loaded" : decision.reason));
    PF_TRY(end_vmm(looks[i]));
  }
  return {};
}

Result<Recovery::Verdict> Recovery::act(const Decision& decision, VmmLook* vmm,
                                        const OwnershipSnapshot& snapshot) {
  reporter_.note(fmt::format("{} (epoch {}): {}", action_name(decision.action), raw(decision.epoch),
                             decision.reason));
  if (decision.action != Action::wait) waiting_since_.reset();
  switch (decision.action) {
    case Action::nothing:
      return refuse(ExitCode::done, decision.reason);
    case Action::wait:
    case Action::keep_and_wait:
      return wait_a_little(decision);
    case Action::write_fenced:
      PF_TRY(hand_off_->fenced(decision.epoch, *decision.fenced));
      return Verdict{};
    case Action::release:
      PF_TRY(hand_off_->release(decision.epoch, decision.state));
      return Verdict{};
    case Action::give_up_unrun:
      PF_TRY(hand_off_->give_up(decision.epoch, decision.state));
      return Verdict{};
    case Action::claim_and_continue:
      return claim_and_continue(decision, *vmm);
    case Action::run_and_continue:
    case Action::continue_only:
      return run_and_continue(decision, *vmm, snapshot);
    case Action::end_vmm:
      PF_TRY(end_vmm(*vmm));
      return Verdict{};
    case Action::load_claim_continue:
      return load_and_run(decision);
    case Action::boot_claimed:
      return refuse(ExitCode::state_lost, decision.reason);
  }
  return refuse(ExitCode::recoverable, decision.reason);
}

Recovery::Verdict Recovery::wait_a_little(const Decision& decision) {
  if (!waiting_since_) waiting_since_ = clock_.now();
  if (clock_.now() - *waiting_since_ > kWaitBound || stop_.canceled()) {
    return refuse(ExitCode::lost_claim, decision.reason);
  }
  // Another host owns it: waiting here changes nothing.
  if (decision.reason.find("nobody proved") != std::string::npos) {
    return refuse(ExitCode::lost_claim, decision.reason);
  }
  pollfd waiting{.fd = stop_.fd(), .events = POLLIN, .revents = 0};
  ::poll(&waiting, 1, kWaitIntervalMs);
  return Verdict{};
}

Recovery::Verdict Recovery::refuse(ExitCode code, const std::string& reason) {
  if (code == ExitCode::done) {
    reporter_.note(reason);
  } else {
    reporter_.error(Error{Errc::not_owner, 0, reason});
  }
  return Verdict{Round::finished, code};
}

}  // namespace pageferry
