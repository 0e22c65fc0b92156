// Opening a userfaultfd that gets the kernel's own faults too (a vCPU's in KVM, a system call's) needs a privilege, in one of two
// ways: write access to /dev/userfaultfd (Linux 6.1), or CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1 for the system call. Both
// are tried, and an error names both.
#include "pager/write_protected_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "transport/os/error.h"

namespace pageferry {
namespace {

constexpr unsigned kFlags = O_CLOEXEC | O_NONBLOCK;

#ifndef USERFAULTFD_IOC_NEW  // 6.1, and not in all of its headers
constexpr unsigned long kNewUserfault = _IO(0xAA, 0x00);
#else
constexpr unsigned long kNewUserfault = USERFAULTFD_IOC_NEW;
#endif

Result<UniqueFd> open_for_own_faults() {
  UniqueFd userfault(static_cast<int>(::syscall(SYS_userfaultfd, kFlags | UFFD_USER_MODE_ONLY)));
  if (userfault.valid()) return userfault;
  const int error = errno;
  return fail(Errc::unsupported, fmt::format("userfaultfd: {}", std::strerror(error)));
}

Result<UniqueFd> open_for_all_faults() {
  int device_error = 0;
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (device.valid()) {
    UniqueFd userfault(::ioctl(device.get(), kNewUserfault, kFlags));
    if (userfault.valid()) return userfault;
  }
  device_error = errno;
  UniqueFd userfault(static_cast<int>(::syscall(SYS_userfaultfd, kFlags)));
  if (userfault.valid()) return userfault;
  const int call_error = errno;
  return fail(Errc::unsupported,
              fmt::format("no userfaultfd for the faults of KVM and of system calls: "
                          "/dev/userfaultfd: {}; userfaultfd(2): {} (needs CAP_SYS_PTRACE or "
                          "vm.unprivileged_userfaultfd=1)",
                          std::strerror(device_error), std::strerror(call_error)));
}

// UFFDIO_API, which one descriptor takes once.
Result<std::uint64_t> greet(const UniqueFd& userfault, std::uint64_t features) {
  uffdio_api api{.api = UFFD_API, .features = features, .ioctls = 0};
  if (::ioctl(userfault.get(), UFFDIO_API, &api) == 0) return api.features;
  const int error = errno;
  return fail(Errc::unsupported,
              fmt::format("UFFDIO_API with features {:#x}: {}", features, std::strerror(error)));
}

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

Result<std::uint64_t> WriteProtectedMemory::kernel_features() {
  PF_ASSIGN(const UniqueFd userfault, open_for_own_faults());
  return greet(userfault, 0);
}

Result<WriteProtectedMemory> WriteProtectedMemory::make(
    const MemoryLayout& layout, std::span<const std::uint64_t> block_addresses,
    std::uint64_t features, KernelFaults kernel_faults) {
  PF_CHECK(block_addresses.size() == layout.blocks().size());
  WriteProtectedMemory memory;
  PF_ASSIGN(memory.userfault_, kernel_faults == KernelFaults::answered_by_us
                                   ? open_for_all_faults()
                                   : open_for_own_faults());
  PF_TRY(greet(memory.userfault_, features));
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
