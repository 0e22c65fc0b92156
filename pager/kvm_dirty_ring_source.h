// KvmDirtyRingSource: a DirtySource by KVM's dirty rings (kernel document virt/kvm/api: KVM_CAP_DIRTY_LOG_RING; Linux 5.11). Each
// vCPU has a ring in shared memory to which KVM adds the number of every page that the vCPU writes first; emptying it costs by
// what was written and not by the size of the guest, and a vCPU that writes too fast stops by itself.
//
// Sees what KvmDirtyLogSource sees, and misses the same: each of the VMM's devices has to say mark_dirty() (D2). What KVM itself
// writes outside of any vCPU is in no ring; on x86 there is none of it.
//
// KVM keeps 64 entries free for what a vCPU may still write before it stops. A KVM that emulates the guest's stores was seen to
// write past them, up to over the oldest entries; from then on its ring is in disorder. So a ring that is full to the last entry
// is an error that stays until the source is stopped: never a collection with holes. Larger rings, or another source, then.
//
// What the VMM has to do besides:
//   - enable_dirty_rings() before it creates the first vCPU; KVM has no dirty log for this VM from then on
//   - on KVM_EXIT_DIRTY_RING_FULL, which KVM_RUN returns till there is room: call empty_rings() on that thread, run again
//
// Thread rule: dirty_source.h; empty_rings() any thread while it is started, blocks shortly. Lifetime: layout and descriptors
// outlive it. While it is started, the VMM changes no slot and empties no ring itself.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "pager/dirty_source.h"
#include "pager/kvm_memory_slot.h"

namespace pageferry {

// `ring_bytes`: per vCPU; a power of two, at least a page. Errors: unsupported (no rings, or not so large), vmm (there are vCPUs).
Result<void> enable_dirty_rings(int vm_fd, std::uint64_t ring_bytes);

class KvmDirtyRingSource final : public DirtySource {
 public:
  KvmDirtyRingSource(const MemoryLayout& layout, int vm_fd, std::vector<int> vcpu_fds,
                     std::uint64_t ring_bytes, std::vector<KvmMemorySlot> slots);
  ~KvmDirtyRingSource() override { static_cast<void>(stop()); }

  // Moves what is in the rings to the next collection. Errors: vmm (then the vCPU cannot run on under this source: stop() it).
  Result<void> empty_rings();

 private:
  // A mapped ring, and where its oldest entry is; unknown until there is one.
  class Ring {
   public:
    Ring(Ring&& other) noexcept;
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;
    Ring& operator=(Ring&&) = delete;
    ~Ring();
    static Result<Ring> map(int vcpu_fd, std::uint64_t bytes);
    // Calls visit(entry) for each entry, oldest first, and gives it back to KVM. How many these were.
    template <typename Visit>
    std::size_t take_all(Visit visit);
    std::size_t size() const { return entries_.size(); }

   private:
    explicit Ring(std::span<kvm_dirty_gfn> entries) : entries_(entries) {}
    bool is_dirty(std::size_t index) const;
    std::optional<std::size_t> find_oldest() const;
    bool is_full() const;

    std::span<kvm_dirty_gfn> entries_;
    std::optional<std::size_t> next_;
  };

  Result<void> begin() override;
  Result<void> fetch(DirtyBitmap& dirty) override;
  Result<void> end() override;
  Result<void> harvest();
  void note(const kvm_dirty_gfn& entry);

  int vm_fd_;
  std::vector<int> vcpu_fds_;
  std::uint64_t ring_bytes_;
  std::vector<KvmMemorySlot> slots_;  // by number
  std::mutex rings_lock_;
  std::vector<Ring> rings_;      // while started; guarded by rings_lock_
  std::optional<Error> broken_;  // the same
  ReportedPages harvested_;      // taken under rings_lock_
};

}  // namespace pageferry
