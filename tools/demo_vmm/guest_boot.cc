// Page tables map all guest-physical addresses up to the last slot one to one, in 2 MiB pages. Their accessed and dirty bits are set from
// the start, so that running writes nothing but what the guest itself writes.
#include "tools/demo_vmm/guest_boot.h"

#include <cstring>

#include "tools/demo_vmm/guest/guest_image.h"

namespace pageferry::demo {
namespace {

constexpr std::uint64_t kTableFlags = 0x67;  // present, writable, for user mode, accessed, dirty
constexpr std::uint64_t kHugeFlags = 0xe7;   // and 2 MiB
constexpr std::uint64_t kEntriesInTable = 512;
constexpr std::uint64_t kDirectories = kPageTablesAddress + 2 * kGuestPageBytes;
static_assert(kDirectories + kGuestAddressGibMax * kGuestPageBytes <= kEntriesAddress);

void put(const VmMemory& memory, std::uint64_t address, const void* bytes, std::size_t size) {
  std::byte* const at = memory.at(address, size);
  PF_CHECK(at != nullptr);
  std::memcpy(at, bytes, size);
}
void put_word(const VmMemory& memory, std::uint64_t address, std::uint64_t word) {
  put(memory, address, &word, sizeof word);
}

void put_page_tables(const GuestPlan& plan, const VmMemory& memory) {
  const PlannedSlot& last = plan.slots.back();
  constexpr std::uint64_t kGib = std::uint64_t{1} << 30;
  const std::uint64_t gibs = (last.guest_address + last.size_bytes + kGib - 1) / kGib;
  PF_CHECK(gibs <= kGuestAddressGibMax);
  const std::uint64_t pointers = kPageTablesAddress + kGuestPageBytes;
  put_word(memory, kPageTablesAddress, pointers | kTableFlags);
  for (std::uint64_t gib = 0; gib < gibs; ++gib) {
    const std::uint64_t directory = kDirectories + gib * kGuestPageBytes;
    put_word(memory, pointers + gib * sizeof directory, directory | kTableFlags);
    for (std::uint64_t i = 0; i < kEntriesInTable; ++i) {
      put_word(memory, directory + i * sizeof i, (gib * kGib + i * kGuestHugeBytes) | kHugeFlags);
    }
  }
}

}  // namespace

void boot_guest(const GuestPlan& plan, const VmMemory& memory) {
  put(memory, kParametersAddress, &plan.parameters, sizeof plan.parameters);
  put(memory, kCodeAddress, guest_image().data(), guest_image().size());
  put_page_tables(plan, memory);
}

}  // namespace pageferry::demo
