// Scenes for the rules of the hand-off: snapshots written as a row of records, and what this host sees of a VMM.
//
// Thread rule: values.
#pragma once

#include <optional>
#include <utility>

#include "fakes/ownership_samples.h"
#include "transport/hand_off_rules.h"

namespace pageferry::testing_support {

// Builds snapshots: epochs from 0, each opened by host and VMM.
class Records {
 public:
  Records& owner(char host = 'a', int vmm = 1, int boot = 1) {
    writer_ = sample_writer(host, vmm, boot);
    snapshot_.epochs.emplace_back();
    snapshot_.epochs.back().owner = sample_record(epoch(), OwnerFact{}, writer_);
    return *this;
  }
  Records& with(RecordFact fact) {
    EpochRecords& top = snapshot_.epochs.back();
    OwnershipRecord record = sample_record(epoch(), std::move(fact), writer_);
    switch (record.kind()) {
      case RecordKind::owner:
        break;
      case RecordKind::running:
        top.running = record;
        break;
      case RecordKind::released:
        top.released = record;
        break;
      case RecordKind::resident:
        top.resident = record;
        break;
      case RecordKind::fenced:
        top.fenced = record;
        break;
      case RecordKind::ended:
        top.ended = record;
        break;
    }
    return *this;
  }
  Records& fenced() { return with(FencedFact{writer_.claimant, FencingMeans::operator_word, ""}); }
  operator const OwnershipSnapshot&() const { return snapshot_; }  // NOLINT: reads as a snapshot

 private:
  std::uint32_t epoch() const { return static_cast<std::uint32_t>(snapshot_.epochs.size() - 1); }
  OwnershipSnapshot snapshot_;
  RecordWriter writer_;
};

inline const HostIdentity kMe = sample_host('a', 1);

inline VmmView view(VmmState state, int vmm = 1) {
  if (state == VmmState::none) return {state, std::nullopt, std::nullopt};
  return {state, sample_vmm(vmm), std::nullopt};
}

inline Decision decided(const VmmView& vmm, const OwnershipSnapshot& snapshot,
                        const ToolMemory& memory = {}) {
  return decide(vmm, snapshot, kMe, memory);
}

// The source on "a" with VMM 1, released with an image and its memory.
inline Records released_source() {
  ReleasedFact fact = releases_image(0);
  fact.state.memory = StoppedVmm{kMe, sample_vmm(1)};
  return Records().owner('a', 1).with(runs()).with(fact);
}

}  // namespace pageferry::testing_support
