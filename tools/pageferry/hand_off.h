// HandOff: the records of one VM as one life of the tool writes them. Each method is one step of
// docs/ownership-protocol.md; what the steps are for stands there, what may be written when in
// transport/hand_off_rules.h.
//
// Thread rule: one thread at a time; `stop` may be given from any. Lifetime: owns the VM's
// directory and log; `stop` outlives it.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "transport/cancel_signal.h"
#include "transport/hand_off_rules.h"
#include "transport/host_identity.h"
#include "transport/os/error.h"
#include "transport/ownership_log.h"
#include "transport/vm_directory.h"

namespace pageferry {

enum class Claim : std::uint8_t { won, lost };

class HandOff {
 public:
  // Opens (source: creates) the VM's directory on the store. Errors as VmDirectory::open.
  static Result<std::unique_ptr<HandOff>> open(const std::string& store, const std::string& vm_name,
                                               VmDirectory::IfMissing if_missing,
                                               const CancelSignal& stop);

  Result<OwnershipSnapshot> read() { return log_->read(); }
  const VmDirectory& directory() const { return directory_; }
  const HostIdentity& host() const { return host_; }
  const RandomId& claimant() const { return claimant_; }

  // owner.epoch for this VMM. A candidate that can step back takes the store's refusal as an error;
  // the one behind whom nobody stands repeats.
  Result<Claim> claim(Epoch epoch, const ProcessIdentity& vmm,
                      WhenRefused when_refused = WhenRefused::give_up);
  // running.epoch: durable on return. Errc::not_owner when the name was taken (by a void, or
  // another): never continue then.
  Result<void> run(Epoch epoch, const ProcessIdentity& vmm);
  // Rule 6: running.epoch with content void, then released.epoch with `state`. The VMM was ended
  // before. When the name running.epoch turns out to be taken by a run, released.epoch names
  // nothing.
  Result<void> give_up(Epoch epoch, const GuestState& state);
  // released.epoch: repeats until the store accepts it (rule 8).
  Result<void> release(Epoch epoch, const GuestState& state);
  Result<void> resident(Epoch epoch);
  Result<void> fenced(Epoch epoch, const FencedFact& fact);
  Result<void> ended(Epoch epoch);

  // The image of `kept` stays. What is older goes, and so do the attempts of dead tools at the epoch from which `kept` was made, since
  // its release names `kept`. A newer page file that left pages in an older one has it by a hard link of its own.
  // Precondition: as below, for an epoch that was loaded from `kept`.
  Result<void> remove_attempts_superseded_by(const std::string& kept);
  // Removes every attempt that no epoch from `resident_epoch` on can need. Precondition:
  // resident.resident_epoch is durable.
  Result<void> remove_older_attempts(Epoch resident_epoch);

 private:
  HandOff(VmDirectory directory, OwnershipLog log, HostIdentity host, ProcessIdentity tool,
          RandomId claimant, const CancelSignal& stop);
  OwnershipRecord record(Epoch epoch, RecordFact fact, std::optional<ProcessIdentity> vmm) const;
  Result<RecordOutcome> write(const OwnershipRecord& record, WhenRefused when_refused);

  VmDirectory directory_;
  std::unique_ptr<OwnershipLog> log_;
  HostIdentity host_;
  ProcessIdentity tool_;
  RandomId claimant_;
  const CancelSignal& stop_;
};

// Size and mtime now of each path. Errors name the path.
Result<std::vector<DiskFile>> stat_disks(const std::vector<std::string>& paths);
// invalid, naming the first disk that differs from what the release says.
Result<void> check_disks_unchanged(const std::vector<DiskFile>& disks);

}  // namespace pageferry
