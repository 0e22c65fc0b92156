// A slot is set again with the same addresses and another flag, which KVM allows while vCPUs run.
#include "pager/kvm_memory_slot.h"

#include <fmt/format.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <algorithm>

namespace pageferry {

Result<void> check_slots_cover(const MemoryLayout& layout, std::vector<KvmMemorySlot> slots) {
  std::ranges::sort(slots, {}, [](const KvmMemorySlot& slot) { return raw(slot.pages.first); });
  std::uint64_t covered = 0;
  for (const KvmMemorySlot& slot : slots) {
    if (slot.pages.pages == 0 || raw(slot.pages.first) != covered) break;
    covered += slot.pages.pages;
  }
  const bool all_used = covered == layout.pages() && !slots.empty() &&
                        raw(slots.back().pages.first) + slots.back().pages.pages == covered;
  if (all_used) return {};
  return fail(Errc::invalid, fmt::format("memory slots do not cover page {} of {} exactly once",
                                         covered, layout.pages()));
}

Result<void> switch_log(int vm_fd, const KvmMemorySlot& slot, KvmLog log) {
  kvm_userspace_memory_region region{};
  region.slot = slot.slot;
  region.flags = slot.flags | (log == KvmLog::on ? KVM_MEM_LOG_DIRTY_PAGES : 0U);
  region.guest_phys_addr = slot.guest_physical;
  region.memory_size = bytes_of_pages(slot.pages.pages);
  region.userspace_addr = slot.userspace;
  if (::ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region) == 0) return {};
  Unexpected reason =
      syscall_error("KVM_SET_USER_MEMORY_REGION", fmt::format("slot {:#x}", slot.slot));
  reason.value().code = Errc::vmm;
  return reason;
}

Result<void> switch_logs_on(int vm_fd, const std::vector<KvmMemorySlot>& slots) {
  for (std::size_t i = 0; i < slots.size(); ++i) {
    auto switched = switch_log(vm_fd, slots[i], KvmLog::on);
    if (switched) continue;
    for (std::size_t k = 0; k < i; ++k) {
      static_cast<void>(switch_log(vm_fd, slots[k], KvmLog::off));
    }
    return switched;
  }
  return {};
}

Result<void> switch_logs_off(int vm_fd, const std::vector<KvmMemorySlot>& slots) {
  Result<void> result;
  for (const KvmMemorySlot& slot : slots) {
    auto switched = switch_log(vm_fd, slot, KvmLog::off);
    if (!switched && result) result = std::move(switched);
  }
  return result;
}

}  // namespace pageferry
