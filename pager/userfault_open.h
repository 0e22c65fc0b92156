// Opening a userfaultfd of this process, with the features that are wanted of it.
//
// Thread rule: functions without state.
#pragma once

#include <cstdint>

#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

// Whether faults of the kernel itself (a vCPU's in KVM, a system call's) have to be answered by us: only then a privilege is needed.
enum class KernelFaults : std::uint8_t { answered_by_us, answered_by_kernel };

// It does not block. Errors: unsupported (no userfaultfd, or not allowed: sys_errno is EPERM or EACCES; or it lacks the features).
Result<UniqueFd> open_userfault(KernelFaults kernel_faults, std::uint64_t features);

// The features of this kernel. Errors: unsupported.
Result<std::uint64_t> userfault_features();

}  // namespace pageferry
