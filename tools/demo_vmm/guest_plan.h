// GuestPlan: where the memory of a demo guest lies and what it shall do there, from the few numbers that a user gives. The same numbers
// give the same slots in every VMM, which is what lets one take the guest of another.
//
//   "boot"          gpa 0: what guest_format.h lists below the regions; 2 MiB and 8 bytes a page and disk block, rounded up to 2 MiB
//   "ram0"...       the regions: the rest of the memory, with holes of 16 MiB between them
//
// Thread rule: pure; values. Sizes in bytes unless the name says pages or blocks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/demo_vmm/guest/guest_format.h"
#include "transport/os/error.h"

namespace pageferry::demo {

struct GuestNumbers {
  std::uint64_t memory_bytes = std::uint64_t{64} << 20;  // of all slots; a multiple of 2 MiB
  std::uint32_t ram_slots = 2;                           // 1 to kRegionsMax
  std::uint32_t vcpus = 2;                               // 1 to kVcpusMax
  std::uint64_t disk_bytes = 0;                          // a multiple of 4 KiB; 0: no disk
  // Below: the guest's own, read when it begins; an incoming VMM needs none of them.
  std::uint64_t seed = 1;
  Distribution distribution = Distribution::uniform;
  std::uint64_t fill_bytes = ~std::uint64_t{0};         // larger than the data pages: all of them
  std::uint64_t working_set_bytes = ~std::uint64_t{0};  // likewise
  std::uint64_t give_back_bytes = kGuestPageBytes;      // the balloon's unit: 4 KiB or 2 MiB
};

struct PlannedSlot {
  std::string name;
  std::uint64_t guest_address = 0;
  std::uint64_t size_bytes = 0;
};

struct GuestPlan {
  std::vector<PlannedSlot> slots;  // by address; the first is "boot"
  Parameters parameters{};
};

// Errc::invalid names the number, its value and its limit.
Result<GuestPlan> plan_guest(const GuestNumbers& numbers);

}  // namespace pageferry::demo
