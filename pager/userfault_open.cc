// Opening a userfaultfd that gets the kernel's own faults too (a vCPU's in KVM, a system call's) needs a privilege, in one of two
// ways: write access to /dev/userfaultfd (Linux 6.1), or CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1 for the system call. Both
// are tried, and an error names both.
#include "pager/userfault_open.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace pageferry {
namespace {

constexpr unsigned kFlags = O_CLOEXEC | O_NONBLOCK;

#ifndef USERFAULTFD_IOC_NEW  // 6.1, and not in all of its headers
constexpr unsigned long kNewUserfault = _IO(0xAA, 0x00);
#else
constexpr unsigned long kNewUserfault = USERFAULTFD_IOC_NEW;
#endif

Unexpected unsupported(int error, std::string message) {
  Unexpected reason = fail(Errc::unsupported, std::move(message));
  reason.value().sys_errno = error;
  return reason;
}

Result<UniqueFd> open_for_own_faults() {
  UniqueFd userfault(static_cast<int>(::syscall(SYS_userfaultfd, kFlags | UFFD_USER_MODE_ONLY)));
  if (userfault.valid()) return userfault;
  const int error = errno;
  return unsupported(error, fmt::format("userfaultfd: {}", std::strerror(error)));
}

Result<UniqueFd> open_for_all_faults() {
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (device.valid()) {
    UniqueFd userfault(::ioctl(device.get(), kNewUserfault, kFlags));
    if (userfault.valid()) return userfault;
  }
  const int device_error = errno;
  UniqueFd userfault(static_cast<int>(::syscall(SYS_userfaultfd, kFlags)));
  if (userfault.valid()) return userfault;
  const int call_error = errno;
  return unsupported(call_error,
                     fmt::format("no userfaultfd for the faults of KVM and of system calls: "
                                 "/dev/userfaultfd: {}; userfaultfd(2): {} (needs CAP_SYS_PTRACE "
                                 "or vm.unprivileged_userfaultfd=1)",
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

}  // namespace

Result<UniqueFd> open_userfault(KernelFaults kernel_faults, std::uint64_t features) {
  PF_ASSIGN(UniqueFd userfault, kernel_faults == KernelFaults::answered_by_us
                                    ? open_for_all_faults()
                                    : open_for_own_faults());
  PF_TRY(greet(userfault, features));
  return userfault;
}

Result<std::uint64_t> userfault_features() {
  PF_ASSIGN(const UniqueFd userfault, open_for_own_faults());
  return greet(userfault, 0);
}

}  // namespace pageferry
