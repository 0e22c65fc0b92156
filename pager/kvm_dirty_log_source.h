// KvmDirtyLogSource: a DirtySource by KVM's dirty log (kernel document virt/kvm/api: KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG,
// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; Linux 5.0). Costs the guest one exit to the kernel per page and collection, and no thread.
//
// It sees what vCPUs write and what KVM itself writes for them (kvmclock, steal time). It sees nothing that the VMM or the host
// kernel writes through the VMM's mapping: each of the VMM's devices has to say mark_dirty() for what it wrote (D2). A VMM that
// cannot promise that takes a write protection source.
//
// Thread rule: dirty_source.h. Lifetime: layout and VM descriptor outlive it. While it is started the VMM changes no slot, and
// uses no dirty log of its own on them. With the dirty ring enabled KVM has no dirty log: KvmDirtyRingSource.
#pragma once

#include <cstdint>
#include <vector>

#include "pager/dirty_source.h"
#include "pager/kvm_memory_slot.h"

namespace pageferry {

class KvmDirtyLogSource final : public DirtySource {
 public:
  KvmDirtyLogSource(const MemoryLayout& layout, int vm_fd, std::vector<KvmMemorySlot> slots);
  ~KvmDirtyLogSource() override { static_cast<void>(stop()); }

 private:
  Result<void> begin() override;
  Result<void> fetch(DirtyBitmap& dirty) override;
  Result<void> end() override;
  Result<void> fetch_slot(const KvmMemorySlot& slot, DirtyBitmap& dirty);
  Result<void> clear_log(const KvmMemorySlot& slot);

  int vm_fd_;
  std::vector<KvmMemorySlot> slots_;
  std::vector<std::uint64_t> words_;  // the log of one slot
};

}  // namespace pageferry
