// KvmMemorySlot: one memory slot of KVM, and which pages of the layout it is. A RAM block may be cut into several slots (QEMU does
// so around the PCI hole), and KVM's logs count from the beginning of a slot.
//
// Thread rule: values.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page.h"
#include "transport/os/error.h"

namespace pageferry {

struct KvmMemorySlot {
  std::uint32_t slot = 0;   // as in KVM_SET_USER_MEMORY_REGION: address space << 16 | number
  std::uint32_t flags = 0;  // as the VMM has set them, without the log
  std::uint64_t guest_physical = 0;  // address
  std::uint64_t userspace = 0;       // address
  PageRun pages;                     // of the layout, within one block
};

// Every page of the layout is in exactly one slot; or Errc::invalid, which names a page. A page in none would never be reported.
Result<void> check_slots_cover(const MemoryLayout& layout, std::vector<KvmMemorySlot> slots);

enum class KvmLog : std::uint8_t { off, on };
// KVM_SET_USER_MEMORY_REGION with the slot as it is, and the log switched. Errors: vmm.
Result<void> switch_log(int vm_fd, const KvmMemorySlot& slot, KvmLog log);
// All slots; when one refuses, those before it are off again.
Result<void> switch_logs_on(int vm_fd, const std::vector<KvmMemorySlot>& slots);
// All slots, whatever one says; the first error.
Result<void> switch_logs_off(int vm_fd, const std::vector<KvmMemorySlot>& slots);

}  // namespace pageferry
