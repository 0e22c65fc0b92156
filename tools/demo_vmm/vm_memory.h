// VmMemory: the guest's memory as the VMM maps it: the planned slots, of one of four kinds. Mapping touches no page, so that a hook can
// make every one of them wait.
//
// Thread rule: constant after map(); give_back() and the memory itself may be used by any thread. Lifetime: unmaps on destruction; every
// user of the memory (vCPUs, disk, hook) must be gone by then.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tools/demo_vmm/guest_plan.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry::demo {

enum class MemoryKind : std::uint8_t {
  anonymous,         // private, 4 KiB pages
  memfd,             // shared, 4 KiB pages
  transparent_huge,  // private, MADV_HUGEPAGE
  hugetlb,           // a memfd of 2 MiB pages, which must be free on the machine
};

struct MemorySlot {
  std::string name;
  std::uint64_t guest_address = 0;
  std::uint64_t size_bytes = 0;
  std::byte* host_address = nullptr;   // aligned to 2 MiB
  std::uint64_t memory_fd_offset = 0;  // 0 for anonymous memory
};

class VmMemory {
 public:
  // Errors of the system; no_space: too few huge pages are free.
  static Result<VmMemory> map(const std::vector<PlannedSlot>& slots, MemoryKind kind);
  VmMemory(VmMemory&&) noexcept = default;
  VmMemory& operator=(VmMemory&&) = delete;
  ~VmMemory();

  const std::vector<MemorySlot>& slots() const { return slots_; }
  MemoryKind kind() const { return kind_; }
  // One file for all slots; -1: anonymous memory.
  int memory_fd() const { return fd_.get(); }
  std::uint64_t backing_page_bytes() const;

  // Null: the range is not inside one slot.
  std::byte* at(std::uint64_t guest_address, std::uint64_t bytes) const;
  // The pages are free for the host now and read as zeros. Precondition: the range is inside one slot. Errc::invalid: not whole backing
  // pages.
  Result<void> give_back(std::uint64_t guest_address, std::uint64_t bytes) const;

 private:
  VmMemory(MemoryKind kind, UniqueFd fd) : kind_(kind), fd_(std::move(fd)) {}
  Result<void> map_slot(const PlannedSlot& slot, std::uint64_t offset);

  MemoryKind kind_;
  UniqueFd fd_;
  std::vector<MemorySlot> slots_;
};

}  // namespace pageferry::demo
