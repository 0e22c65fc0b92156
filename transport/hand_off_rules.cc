// The rules, one function each; the numbers are those of docs/ownership-protocol.md.
//
// decide() is a table, so it is written as one: first what is the same for every record (a running
// guest, states that change by themselves), then one function per VMM state. Two words carry it:
//
//   open   owner.T has neither released.T, fenced.T nor ended.T: only T's own tool may act, and
//          only on T's own VMM
//   ours   the VMM that we look at is the one owner.T names, in this boot of this host
//
// A host is not enough for "ours": after a move from one QEMU to another on the same host, both are
// here.
//
// Absent records permit nothing by themselves: a link of a dead or paused tool may still land.
// Every action either writes a record first, so that the name is taken whatever lands later, or
// ends a VMM.
#include "transport/hand_off_rules.h"

#include <fmt/format.h>

#include <array>

namespace pageferry {
namespace {

std::string who(const RecordWriter& writer) {
  return fmt::format("host {} (boot {}), VMM pid {}", writer.host.name, writer.host.boot_id,
                     writer.vmm ? writer.vmm->pid : 0);
}

bool is_held_by(const GuestState& state, const VmmView& vmm, const HostIdentity& me) {
  return state.memory && vmm.process && same_boot(state.memory->host, me) &&
         state.memory->process == *vmm.process;
}

// What decide() looks at again and again.
struct Scene {
  const VmmView& vmm;
  const OwnershipSnapshot& snapshot;
  const HostIdentity& me;
  const ToolMemory& memory;
  Epoch highest;
  const EpochRecords& top;

  bool open() const { return !top.is_closed(); }
  bool owner_is_here() const { return same_boot(top.owner_writer().host, me); }
  bool ours() const {
    const auto named = vmm_of_highest(snapshot, me);
    return named && vmm.process && *named == *vmm.process;
  }
  GuestState state_for_highest() const { return image_for(snapshot, highest); }
  GuestState state_for_next() const { return image_for(snapshot, next(highest)); }

  Decision on_highest(Action action, std::string reason) const {
    return Decision{action, highest, {}, std::nullopt, std::move(reason)};
  }
  Decision on_next(Action action, GuestState state, std::string reason) const {
    return Decision{action, next(highest), std::move(state), std::nullopt, std::move(reason)};
  }
  Decision release(Action action, GuestState state, std::string reason) const {
    return Decision{action, highest, std::move(state), std::nullopt, std::move(reason)};
  }
};

// Rule 9. A proof for an owner record that we read before, or a later boot of the owner's own
// machine: ours.
std::optional<FencedFact> proved_off(const Scene& scene) {
  const RecordWriter& owner = scene.top.owner_writer();
  const auto& proof = scene.memory.proof;
  if (proof && proof->epoch == scene.highest && proof->claimant == owner.claimant) {
    return FencedFact{owner.claimant, proof->means, proof->detail};
  }
  if (same_machine_other_boot(owner.host, scene.me)) {
    return FencedFact{owner.claimant, FencingMeans::reboot,
                      fmt::format("seen in boot {}", scene.me.boot_id)};
  }
  return std::nullopt;
}

Decision decide_post_migrate(const Scene& scene) {
  if (scene.top.ended) {
    return scene.on_highest(Action::end_vmm, "the guest has shut down for good");
  }
  if (!scene.open()) {
    GuestState state = scene.state_for_next();
    if (is_held_by(state, scene.vmm, scene.me)) {
      return scene.on_next(Action::claim_and_continue, std::move(state),
                           "this VMM still holds the released state");
    }
    return scene.on_highest(Action::end_vmm, "what this VMM holds is not the newest state");
  }
  if (!scene.ours()) {
    if (scene.top.ran()) {
      return scene.on_highest(Action::end_vmm,
                              fmt::format("the guest runs in epoch {} at {}", raw(scene.highest),
                                          who(scene.top.owner_writer())));
    }
    return scene.on_highest(Action::keep_and_wait,
                            fmt::format("epoch {} is claimed by {} and not decided",
                                        raw(scene.highest), who(scene.top.owner_writer())));
  }
  // Rule 5: its own epoch, and never straight back. Without running.T it has not run since it was
  // stopped, so the state is the one it had; with running.T only its memory is known to be the
  // newest.
  if (!scene.top.running) {
    return scene.release(Action::release, scene.state_for_highest(),
                         "claimed, but never told to run: the state is unchanged");
  }
  GuestState state;
  state.image = scene.memory.completed_image;
  state.memory = StoppedVmm{scene.me, *scene.vmm.process};
  state.disks = scene.memory.disks;
  return scene.release(
      Action::release, std::move(state),
      scene.memory.completed_image
          ? "migrated away: the image is complete"
          : "stopped, but by whose migration is not known: only its memory is sure");
}

Decision decide_paused(const Scene& scene) {
  if (scene.top.ended) {
    return scene.on_highest(Action::end_vmm, "the guest has shut down for good");
  }
  if (!scene.open()) {
    GuestState state = scene.state_for_next();
    if (scene.vmm.loaded && state.image == scene.vmm.loaded) {
      return scene.on_next(Action::claim_and_continue, std::move(state),
                           "loaded from the newest state");
    }
    return scene.on_highest(Action::end_vmm, "it was not loaded from the newest state");
  }
  if (!scene.ours()) {
    return scene.on_highest(
        Action::end_vmm,
        fmt::format("epoch {} belongs to {}", raw(scene.highest), who(scene.top.owner_writer())));
  }
  if (scene.top.ran()) {
    return scene.on_highest(Action::continue_only, "its running record is there: it may have run");
  }
  if (scene.top.is_void()) {
    return scene.on_highest(Action::end_vmm, "its epoch was given up");
  }
  return scene.on_highest(Action::run_and_continue, "claimed and loaded, not yet told to run");
}

Decision decide_none(const Scene& scene) {
  if (scene.top.ended) {
    return scene.on_highest(Action::nothing, "the guest has shut down for good");
  }
  if (!scene.open()) {
    GuestState state = scene.state_for_next();
    if (state.image) {
      return scene.on_next(Action::load_claim_continue, std::move(state),
                           "nobody runs the guest and its image is on the store");
    }
    std::string reason = "the newest state is lost: only a reboot is possible";
    if (state.memory) {
      reason = fmt::format("the newest state is only in the memory of VMM pid {} on host {}",
                           state.memory->process.pid, state.memory->host.name);
    }
    return scene.on_next(Action::boot_claimed, std::move(state), std::move(reason));
  }
  if (!scene.owner_is_here()) {
    return scene.on_highest(Action::wait,
                            fmt::format("the guest belongs to {} in epoch {}; nobody "
                                        "proved that host off",
                                        who(scene.top.owner_writer()), raw(scene.highest)));
  }
  if (scene.top.ran()) {
    if (scene.memory.ran_without_continue == scene.highest) {
      return scene.release(Action::release, scene.state_for_highest(),
                           "its VMM died before it was told to continue");
    }
    if (scene.memory.completed_image) {
      GuestState state;
      state.image = scene.memory.completed_image;
      state.disks = scene.memory.disks;
      return scene.release(Action::release, std::move(state),
                           "its VMM died after the image was complete");
    }
    return scene.release(Action::release, GuestState{},
                         "its VMM is gone and the guest may have run: the state is lost");
  }
  if (scene.top.is_void()) {
    return scene.release(Action::release, scene.state_for_highest(), "given up without having run");
  }
  return scene.release(Action::give_up_unrun, scene.state_for_highest(),
                       "its VMM is gone before the guest was told to run");
}

}  // namespace

bool EpochRecords::ran() const {
  return running && std::get<RunningFact>(running->fact).meaning == RunningFact::Meaning::runs;
}

bool EpochRecords::is_void() const {
  return running && std::get<RunningFact>(running->fact).meaning == RunningFact::Meaning::never;
}

const GuestState* EpochRecords::released_state() const {
  if (!released) return nullptr;
  const GuestState& state = std::get<ReleasedFact>(released->fact).state;
  return state.exists() ? &state : nullptr;
}

Epoch OwnershipSnapshot::highest() const {
  PF_CHECK(!epochs.empty());
  return Epoch{raw(first) + static_cast<std::uint32_t>(epochs.size()) - 1};
}

const EpochRecords& OwnershipSnapshot::at(Epoch epoch) const {
  PF_CHECK(epoch >= first && raw(epoch) - raw(first) < epochs.size());
  return epochs[raw(epoch) - raw(first)];
}

std::optional<Epoch> claimable_epoch(const OwnershipSnapshot& snapshot) {
  if (snapshot.empty()) return Epoch{0};
  if (!snapshot.top().is_closed() || raw(snapshot.highest()) >= kEpochMax) return std::nullopt;
  return next(snapshot.highest());
}

bool may_claim(const OwnershipSnapshot& snapshot, Epoch epoch) {
  return claimable_epoch(snapshot) == epoch;
}

bool ends_the_walk(const EpochRecords& records) {
  return records.released_state() != nullptr || records.ran();
}

GuestState image_for(const OwnershipSnapshot& snapshot, Epoch epoch) {
  if (snapshot.empty()) {
    PF_CHECK(epoch == Epoch{0});
    return {};
  }
  PF_CHECK(epoch >= snapshot.first && raw(epoch) <= raw(snapshot.highest()) + 1);
  for (std::uint32_t below = raw(epoch); below > raw(snapshot.first); --below) {
    const EpochRecords& records = snapshot.at(Epoch{below - 1});
    if (const GuestState* state = records.released_state()) return *state;
    if (records.ran()) return {};
  }
  // The reader stops early only below an epoch that ends the walk.
  PF_CHECK(snapshot.first == Epoch{0});
  return {};
}

std::string_view vmm_state_name(VmmState state) {
  static constexpr std::array<std::string_view, 6> kNames = {
      "none", "incoming", "finishing", "post-migrate", "paused", "running"};
  return kNames[static_cast<std::size_t>(state)];
}

std::string_view action_name(Action action) {
  static constexpr std::array<std::string_view, 12> kNames = {
      "nothing",       "wait",          "keep-and-wait",       "write-fenced",
      "release",       "give-up-unrun", "claim-and-continue",  "run-and-continue",
      "continue-only", "end-vmm",       "load-claim-continue", "boot-claimed"};
  return kNames[static_cast<std::size_t>(action)];
}

std::optional<ProcessIdentity> vmm_of_highest(const OwnershipSnapshot& snapshot,
                                              const HostIdentity& me) {
  if (snapshot.empty()) return std::nullopt;
  const RecordWriter& owner = snapshot.top().owner_writer();
  if (!same_boot(owner.host, me)) return std::nullopt;
  return owner.vmm;
}

Decision decide(const VmmView& vmm, const OwnershipSnapshot& snapshot, const HostIdentity& me,
                const ToolMemory& memory) {
  PF_CHECK((vmm.state == VmmState::none) || vmm.process);
  if (snapshot.empty()) {
    return Decision{Action::nothing, Epoch{0}, {}, std::nullopt, "the VM has no records"};
  }
  const Scene scene{vmm, snapshot, me, memory, snapshot.highest(), snapshot.top()};
  if (scene.open()) {
    if (auto fenced = proved_off(scene)) {
      Decision decision = scene.on_highest(Action::write_fenced,
                                           fmt::format("{} is off", who(scene.top.owner_writer())));
      decision.fenced = std::move(fenced);
      return decision;
    }
  }
  switch (vmm.state) {
    case VmmState::running:
      return scene.on_highest(Action::nothing, "the guest runs");
    case VmmState::incoming:
      return scene.on_highest(Action::wait, "the VMM is still loading");
    case VmmState::finishing:
      return scene.on_highest(Action::wait, "the VMM will resume or complete by itself");
    case VmmState::post_migrate:
      return decide_post_migrate(scene);
    case VmmState::paused:
      return decide_paused(scene);
    case VmmState::none:
      return decide_none(scene);
  }
  return scene.on_highest(Action::wait, "unknown VMM state");
}

Standing standing_of(const ProcessIdentity& running_vmm, const OwnershipSnapshot& snapshot,
                     const HostIdentity& me) {
  if (snapshot.empty()) return {Standing::Kind::must_open, Epoch{0}, "its first epoch"};
  const Epoch highest = snapshot.highest();
  const EpochRecords& top = snapshot.top();
  if (top.is_closed()) {
    if (raw(highest) >= kEpochMax) {
      return {Standing::Kind::refused, highest, fmt::format("epoch {} is the last", kEpochMax)};
    }
    return {Standing::Kind::must_open, next(highest), "the epoch before is closed"};
  }
  if (vmm_of_highest(snapshot, me) != running_vmm) {
    return {Standing::Kind::refused, highest,
            fmt::format("epoch {} belongs to {}", raw(highest), who(top.owner_writer()))};
  }
  if (top.is_void()) {
    return {Standing::Kind::refused, highest,
            fmt::format("epoch {} was given up, yet its VMM runs", raw(highest))};
  }
  if (!top.running) return {Standing::Kind::must_write_running, highest, "claimed, not yet run"};
  return {Standing::Kind::owner, highest, "it owns the guest"};
}

}  // namespace pageferry
