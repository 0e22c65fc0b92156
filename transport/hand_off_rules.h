// The rules of the hand-off as pure decisions over what was read from the store: who may claim,
// which state may be continued, and what a restarted tool may do. Reads nothing, writes nothing,
// waits for nothing. The rules in words are in docs/ownership-protocol.md; docs/model/hand-off.pml
// is the model that was checked; change the model first.
//
// Thread rule: values and pure functions.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/ownership_record.h"

namespace pageferry {

// The records of one epoch as they were read, in the order of rule 4: `running` after `released`
// and `fenced`.
struct EpochRecords {
  std::optional<OwnershipRecord> owner;  // always there below and at the highest epoch
  std::optional<OwnershipRecord> running;
  std::optional<OwnershipRecord> released;
  std::optional<OwnershipRecord> resident;
  std::optional<OwnershipRecord> fenced;
  std::optional<OwnershipRecord> ended;

  const RecordWriter& owner_writer() const { return owner->writer; }
  bool ran() const;      // running, and not void: the guest may have run in this epoch
  bool is_void() const;  // running with content void: it never ran and never will
  // The state that released names, when it names one.
  const GuestState* released_state() const;
  // The next epoch may be claimed (rule 2).
  bool is_closed() const { return released || fenced || ended; }
};

// What was read of one VM's records: the epochs from `first` to the highest. Those below `first`
// were not read because rule 4 never walks that far: the lowest epoch read lies below the highest
// and ends the walk, or it is 0. `epochs` is empty when the VM has no records at all.
struct OwnershipSnapshot {
  Epoch first{0};
  std::vector<EpochRecords> epochs;

  bool empty() const { return epochs.empty(); }
  // Precondition of the following: not empty, or for `at`: in the snapshot.
  Epoch highest() const;
  const EpochRecords& at(Epoch epoch) const;
  const EpochRecords& top() const { return epochs.back(); }
};

// Rule 2. `epoch` must be the next after the highest (0 when there are none).
bool may_claim(const OwnershipSnapshot& snapshot, Epoch epoch);
// The epoch that may be claimed next, or nullopt while the highest one is open.
std::optional<Epoch> claimable_epoch(const OwnershipSnapshot& snapshot);

// Rule 4: the state that may be continued in `epoch`; does not exist() when only a reboot is
// possible. Whether the disks are unchanged is the caller's to check. Precondition: 0 <= epoch <=
// highest + 1.
GuestState image_for(const OwnershipSnapshot& snapshot, Epoch epoch);
// True once rule 4's walk from `epoch` down ends at this epoch's records, whatever lies below: a
// reader may stop.
bool ends_the_walk(const EpochRecords& records);

// One look at one VMM process of this host.
enum class VmmState {
  none,       // the VMM is gone: proved by pid and start time, never by a failed connection
  incoming,   // QEMU: inmigrate. `cont` would be remembered and take effect later: wait this state
              // out
  finishing,  // QEMU: finish-migrate; it will resume or become post_migrate by itself
  post_migrate,  // stopped as the source of a migration that QEMU calls completed
  paused,   // stopped and complete: a destination that was loaded, or a guest paused under its own
            // record
  running,  // executing, or stopped by the guest itself (shutdown, panic, I/O error)
};
std::string_view vmm_state_name(VmmState state);

struct VmmView {
  VmmState state = VmmState::none;
  std::optional<ProcessIdentity> process;  // absent only with VmmState::none
  // What a paused destination was loaded from, if it surely has not run since: the caller loaded it
  // itself, or knows it as well.
  std::optional<ImageRef> loaded;
};

// A proof that the host of an epoch's owner is off. It counts for that owner record only (rule 9):
// `claimant` was read from owner.`epoch` before the host was proved off.
struct FencingProof {
  Epoch epoch{0};
  RandomId claimant;
  FencingMeans means = FencingMeans::operator_word;
  std::string detail;
};

// What this life of the tool knows of its own deeds. A restarted tool knows nothing: all absent.
struct ToolMemory {
  // The image that this life committed in the highest epoch, when the VMM's event stream, unbroken
  // since this life's own `migrate`, shows that the guest has not run since: it says `completed`, or
  // the VMM died (its stream read to the end) while this life held the migration socket open.
  std::optional<ImageRef> completed_image;
  // This life wrote running.N and has not sent `cont` and will not.
  std::optional<Epoch> ran_without_continue;
  std::optional<FencingProof> proof;
  // Of the guest's disks, taken after it stopped: goes into released.
  std::vector<DiskFile> disks;
};

enum class Action {
  nothing,        // the guest is where it should be, or the VM has ended
  wait,           // look again later: something is still under way
  keep_and_wait,  // leave the stopped VMM alone until the epoch of another is decided
  write_fenced,   // write fenced.T (`fenced` says what)
  release,        // write released.T with `state`, then decide again
  give_up_unrun,  // take the name running.T with `void`, then as `release`; if it is taken by one that
                  // runs: release with none
  claim_and_continue,   // owner.T+1, running.T+1, then `cont` this VMM
  run_and_continue,     // running.T, then `cont`; or end the VMM and decide again
  continue_only,        // `cont`; the record is there. Never end it to load something else
  end_vmm,              // end this VMM: what it holds must never run
  load_claim_continue,  // spawn, load `state.image`, then owner.T+1, running.T+1, `cont`
  boot_claimed,  // spawn stopped, owner.T+1, running.T+1, then boot: memory is given up. Only on a
                 // person's word: `state.memory` names a stopped VMM that may still hold it
};
std::string_view action_name(Action action);

struct Decision {
  Action action = Action::wait;
  Epoch epoch{0};    // the epoch that the action writes or runs in
  GuestState state;  // for release, give_up_unrun, load_claim_continue
  std::optional<FencedFact> fenced;
  std::string reason;  // one line for people
};

// The table of docs/ownership-protocol.md. Asked first about the VMM that the highest epoch names
// if it is on this host and boot (VmmState::none when that one is gone), then about any other VMM
// of the guest found here. Precondition: the snapshot was read after `vmm` was looked at, and no
// command of an earlier tool is still pending. With an empty snapshot a VMM is left alone, and
// without one there is nothing to do.
Decision decide(const VmmView& vmm, const OwnershipSnapshot& snapshot, const HostIdentity& me,
                const ToolMemory& memory);

// The VMM that owner.T of the highest epoch names, when that epoch is this host's in this boot.
std::optional<ProcessIdentity> vmm_of_highest(const OwnershipSnapshot& snapshot,
                                              const HostIdentity& me);

// Rule 1: how a running VMM stands before a migration.
struct Standing {
  enum class Kind {
    owner,               // it runs in `epoch`, the highest, which is open: go on
    must_write_running,  // it owns `epoch`, but a tool died before running.T: write that first
    must_open,           // it has none: claim `epoch` (owner, running) first
    refused,             // somebody else owns the guest; `reason` says who
  };
  Kind kind = Kind::refused;
  Epoch epoch{0};
  std::string reason;
};
Standing standing_of(const ProcessIdentity& running_vmm, const OwnershipSnapshot& snapshot,
                     const HostIdentity& me);

}  // namespace pageferry
