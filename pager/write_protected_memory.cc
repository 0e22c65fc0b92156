// Registering is all or nothing: when a block is refused, closing the descriptor ends what was registered before it.
#include "pager/write_protected_memory.h"

#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <string_view>
#include <utility>

#include "transport/os/error.h"

namespace pageferry {
namespace {

Unexpected refused(std::string_view call, WriteProtectedMemory::Range range, int error) {
  Unexpected reason =
      syscall_error(call, fmt::format("{} bytes at {:#x}", range.bytes, range.address), error);
  reason.value().code = error == EBUSY ? Errc::busy : error == ENOMEM ? Errc::no_space : Errc::vmm;
  return reason;
}

Result<void> register_block(const UniqueFd& userfault, WriteProtectedMemory::Range range) {
  uffdio_register request{.range = {.start = range.address, .len = range.bytes},
                          .mode = UFFDIO_REGISTER_MODE_WP,
                          .ioctls = 0};
  if (::ioctl(userfault.get(), UFFDIO_REGISTER, &request) != 0) {
    return refused("UFFDIO_REGISTER for write protection", range, errno);
  }
  if ((request.ioctls >> _UFFDIO_WRITEPROTECT & 1U) != 0) return {};
  return fail(Errc::unsupported, fmt::format("this kind of memory cannot be write-protected: {} "
                                             "bytes at {:#x}",
                                             range.bytes, range.address));
}

}  // namespace

Result<WriteProtectedMemory> WriteProtectedMemory::make(
    const MemoryLayout& layout, std::span<const std::uint64_t> block_addresses,
    std::uint64_t features, KernelFaults kernel_faults) {
  PF_CHECK(block_addresses.size() == layout.blocks().size());
  WriteProtectedMemory memory;
  PF_ASSIGN(memory.userfault_, open_userfault(kernel_faults, features));
  for (std::size_t i = 0; i < block_addresses.size(); ++i) {
    const RamBlock& block = layout.blocks()[i];
    if (block.backing_page_bytes != kPageSizeBytes) {
      return fail(Errc::unsupported,
                  fmt::format("{} has pages of {} bytes; write protection tracks {}", block.name,
                              block.backing_page_bytes, kPageSizeBytes));
    }
    const Range range{.address = block_addresses[i], .bytes = block.length_bytes};
    PF_TRY(register_block(memory.userfault_, range));
    memory.blocks_.push_back(range);
  }
  return memory;
}

// EAGAIN: the address space is being changed by somebody (a fork, an mremap), who will come to an end.
Result<void> WriteProtectedMemory::set_protection(Range range, std::uint64_t mode) const {
  uffdio_writeprotect request{.range = {.start = range.address, .len = range.bytes}, .mode = mode};
  while (::ioctl(userfault_.get(), UFFDIO_WRITEPROTECT, &request) != 0) {
    if (errno != EAGAIN && errno != EINTR) return refused("UFFDIO_WRITEPROTECT", range, errno);
    ::sched_yield();
  }
  return {};
}

Result<void> WriteProtectedMemory::protect(Range range) const {
  return set_protection(range, UFFDIO_WRITEPROTECT_MODE_WP);
}

Result<void> WriteProtectedMemory::unprotect(Range range) const {
  return set_protection(range, 0);
}

Result<void> WriteProtectedMemory::release() {
  Result<void> result;
  for (const Range& block : blocks_) {
    uffdio_range range{.start = block.address, .len = block.bytes};
    if (::ioctl(userfault_.get(), UFFDIO_UNREGISTER, &range) == 0 || !result) continue;
    result = refused("UFFDIO_UNREGISTER", block, errno);
  }
  userfault_.reset();
  return result;
}

}  // namespace pageferry
