// The records of tests/golden/ownership/: one of each kind, with every field that format version 1 has.
// Thread rule: pure.
#pragma once

#include <string>
#include <vector>

#include "fakes/ownership_samples.h"
#include "transport/ownership_record.h"

namespace pageferry::testing_support {

inline std::vector<OwnershipRecord> golden_records_v1() {
  GuestState state;
  state.image = sample_image(3);
  state.memory = StoppedVmm{sample_host('b', 2), sample_vmm(4)};
  state.disks.push_back({"/var/lib/vm/disk.qcow2", 10'737'418'240, 1'790'000'000'123'456'789});
  state.disks.push_back({"/odd/100% \xc3\xbc\n", 0, -5});
  return {sample_record(0, OwnerFact{}),
          sample_record(1, runs()),
          sample_record(2, never_ran()),
          sample_record(3, ReleasedFact{state}),
          sample_record(4, releases_nothing()),
          sample_record(5, ResidentFact{}),
          sample_record(6, FencedFact{sample_id(9), FencingMeans::fence_agent, "ipmi: off"}),
          sample_record(kEpochMax, EndedFact{})};
}

}  // namespace pageferry::testing_support
