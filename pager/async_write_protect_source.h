// AsyncWriteProtectSource: a DirtySource by the page tables of the process (Linux 6.7). Guest memory is registered with a
// userfaultfd in asynchronous write protection; PAGEMAP_SCAN then names the pages that were written and protects them again, in
// one step per page. The first write to a protected page costs a fault that the kernel answers by itself; there is no handler
// thread and no message, and no privilege is needed.
//
// It sees every write through this mapping: vCPUs in KVM, the VMM's threads, system calls, other processes that write by
// process_vm_writev. It does not see what goes past the page tables: docs/dirty-tracking.md, and D1 to D3 of dirty_source.h.
//
// Thread rule and lifetime: dirty_source.h. Fails with unsupported where the kernel is too old or a block has huge pages of
// hugetlb (kernels before 6.18.42 lose writes there, or hang).
#pragma once

#include <optional>
#include <vector>

#include "pager/dirty_source.h"
#include "pager/linux_page_tracking.h"
#include "pager/write_protected_memory.h"
#include "transport/os/fd.h"

namespace pageferry {

class AsyncWriteProtectSource final : public DirtySource {
 public:
  // `block_addresses`: where each block of the layout begins in this process.
  AsyncWriteProtectSource(const MemoryLayout& layout, std::vector<std::uint64_t> block_addresses);
  ~AsyncWriteProtectSource() override { static_cast<void>(stop()); }

 private:
  Result<void> begin() override;
  Result<void> fetch(DirtyBitmap& dirty) override;
  Result<PageIndex> fetch_paused(DirtyBitmap& dirty, PageIndex from) override;
  Result<void> end() override;
  enum class Arm : std::uint8_t { yes, no };
  Result<std::uint64_t> scan(std::size_t index, std::uint64_t from, std::uint64_t end, Arm arm,
                             DirtyBitmap& dirty);

  std::vector<std::uint64_t> block_addresses_;
  std::optional<WriteProtectedMemory> memory_;  // while started
  UniqueFd pagemap_;                            // the same
  std::vector<PageRegion> regions_;             // the answer of one scan
};

}  // namespace pageferry
