// OwnershipLog: the records of one VM on the store, written exclusively and read past caches.
//
// A record is created once: temporary file, fsync, link(2) to its name, fsync of the directory.
// Nothing is ever renamed, changed or removed. When a reply was lost, a fresh open and the claimant
// id say who won. Errors of the store never turn "unknown" into "no": write() repeats until it
// knows, or is told to stop.
//
// Thread rule: one thread at a time. Lifetime: owns its RecordFiles.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "transport/cancel_signal.h"
#include "transport/hand_off_rules.h"
#include "transport/ownership_record.h"
#include "transport/record_files.h"

namespace pageferry {

// What became of a write.
struct RecordOutcome {
  enum class Kind {
    written,  // the name holds our record, durably
    taken,    // it holds another's, durably: `winner`
  };
  Kind kind = Kind::written;
  std::optional<OwnershipRecord> winner;
};

// When the store refuses for certain (full, read-only, no permission) before any link was tried
// with unknown outcome.
enum class WhenRefused {
  give_up,  // return the error: the record is not there and will not be. For claims, before the
            // point of no return
  repeat,   // go on until the store accepts it: after the point of no return
};

class OwnershipLog {
 public:
  explicit OwnershipLog(std::unique_ptr<RecordFiles> files) : files_(std::move(files)) {}

  // Rule 8. Blocks; repeats at growing intervals (kRetryFirst..kRetryLast) for as long as the
  // outcome is unknown. Errors: those of a certain refusal with give_up; Errc::corrupt when the
  // name holds something that is no record; Errc::invalid when the record breaks a limit;
  // Errc::canceled when `stop` was given while the outcome was unknown: the record may be there, or
  // may still come. The guest stays paused then.
  Result<RecordOutcome> write(const OwnershipRecord& record, WhenRefused when_refused,
                              const CancelSignal& stop);

  // The epochs that rule 4 can need, from the highest down, in the order it demands; what was read
  // is durable. Errc::corrupt when a record is damaged or an epoch below the highest is missing;
  // Errc::version; Errc::io.
  Result<OwnershipSnapshot> read();
  // All of them, for people and for gc.
  Result<OwnershipSnapshot> read_all();
  // One record, freshly.
  Result<std::optional<OwnershipRecord>> read_record(RecordKind kind, Epoch epoch);

  // Removes temporary files that earlier writers left, except those of `keep`. For gc only, under
  // the VM's lock: a live writer on another host would have to write its temporary again (it does).
  Result<void> remove_leftovers(const RandomId& keep);

  static constexpr Milliseconds kRetryFirst{10};
  static constexpr Milliseconds kRetryLast{1000};

 private:
  enum class Depth { enough_for_rule_4, everything };
  Result<OwnershipSnapshot> read_down(Depth depth);
  Result<std::optional<Epoch>> find_highest();
  Result<EpochRecords> read_epoch(Epoch epoch);

  std::unique_ptr<RecordFiles> files_;
};

}  // namespace pageferry
