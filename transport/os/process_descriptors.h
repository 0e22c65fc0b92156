// Descriptors of another process: which it has open, and duplicates of them. How a process gets hold of what a VMM that knows
// nothing of us has opened for itself.
//
// The kernel gives a duplicate (pidfd_getfd(2), Linux 5.6) to whom it would let trace the process (ptrace(2), "access mode
// checking", PTRACE_MODE_ATTACH_REALCREDS): the same user, unless the process is not dumpable or Yama forbids it, or a holder
// of CAP_SYS_PTRACE.
//
// Thread rule: functions without state.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

// What userfaultfd(2) descriptors are called in /proc/PID/fd.
inline constexpr std::string_view kUserfaultDescriptor = "anon_inode:[userfaultfd]";

// The numbers of the descriptors of process `pid` whose /proc/PID/fd link says `target`, or all when it is nullopt; ascending.
// Errors: gone (no such process), unsupported (not allowed to look), io.
Result<std::vector<int>> descriptors_of(int pid, std::optional<std::string_view> target);

// A duplicate of descriptor `fd` of the process behind `pidfd`; it shares the open file description, flags included.
// Errors: gone (the process ended), not_found (it has closed it), unsupported (not allowed, or a kernel before 5.6).
Result<UniqueFd> duplicate_descriptor(const UniqueFd& pidfd, int fd);

// Whether any process of this user would be given that duplicate, and not only we, who may be the other's parent: Yama lets a
// process trace its descendants (kernel.yama.ptrace_scope=1). Tried in a child, which is nobody's parent. Errors: as above.
Result<void> check_may_duplicate(const UniqueFd& pidfd, int fd);

}  // namespace pageferry
