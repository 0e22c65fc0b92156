// WriteProtectedMemory: the RAM blocks of this process, registered with a userfaultfd for write protection. Asynchronous and
// synchronous tracking share it; what becomes of a write to a protected page is theirs to say, by the features they ask for.
//
// One mapping has one userfaultfd: memory that a restore still has registered for missing pages is busy until that is over.
//
// Thread rule: protect(), unprotect() and descriptor() any thread (the kernel locks); the rest one thread. Lifetime: the memory
// stays mapped. Destroying it ends the registration, unless a forked child has inherited the descriptor: release() ends it anyhow.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page.h"
#include "pager/userfault_open.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

class WriteProtectedMemory {
 public:
  // Registers all blocks. `block_addresses`: where each begins in this process. Errors: unsupported (the features, the privilege,
  // huge pages, this kind of memory), busy (registered with another userfaultfd), vmm (it is not where the caller says).
  static Result<WriteProtectedMemory> make(const MemoryLayout& layout,
                                           std::span<const std::uint64_t> block_addresses,
                                           std::uint64_t features, KernelFaults kernel_faults);

  int descriptor() const { return userfault_.get(); }

  struct Range {
    std::uint64_t address = 0;
    std::uint64_t bytes = 0;
  };
  const std::vector<Range>& blocks() const { return blocks_; }

  // Write protection on; off, and whoever waits is woken. Errors: vmm (not registered any more), no_space (memory for tables).
  Result<void> protect(Range range) const;
  Result<void> unprotect(Range range) const;

  // Ends protection and registration of all blocks and wakes whoever waits. Errors: vmm.
  Result<void> release();

 private:
  WriteProtectedMemory() = default;
  Result<void> set_protection(Range range, std::uint64_t mode) const;

  UniqueFd userfault_;
  std::vector<Range> blocks_;
};

}  // namespace pageferry
