// VmmProcess: what the kernel says about a running VMM (/proc): how it was started, as whom, and
// who it is for sure. Knows no QMP and changes nothing.
//
// Thread rule: values and functions without state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "transport/host_identity.h"  // ProcessIdentity, identify_process, is_alive, this_host: use these
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

// Bounds on what /proc may give and a manifest may claim.
inline constexpr std::uint64_t kPidMax = std::uint64_t{1} << 22;  // the kernel's PID_MAX_LIMIT
inline constexpr std::size_t kArgumentsMax = 4096;
inline constexpr std::size_t kArgumentBytesMax = std::size_t{128}
                                                 << 10;  // the kernel's own limit for one argument
inline constexpr std::size_t kPathBytesMax = 4096;       // the kernel's own limit for one path
inline constexpr std::size_t kGroupsMax = 65536;         // the kernel's own limit

struct VmmProcess {
  ProcessIdentity identity;  // transport/host_identity.h: pid and start_ticks
  std::vector<std::string> argv;
  std::string working_directory;
  std::uint32_t uid = 0;  // effective
  std::uint32_t gid = 0;  // effective
  std::vector<std::uint32_t> groups;
  std::string executable;  // path, without the kernel's " (deleted)"
  // the file was replaced or removed since (an upgrade): /proc/PID/exe still opens it
  bool executable_deleted = false;
  std::string cgroup;  // of the unified hierarchy, "" where there is none
  friend bool operator==(const VmmProcess&, const VmmProcess&) = default;
};

// Everything above. Errors: gone (no such process, or it ended meanwhile), invalid (no QEMU system
// emulator, or arguments beyond the bounds), io (not allowed to look). `proc_root` is "/proc" but
// for tests; the identity always comes from the real one.
Result<VmmProcess> read_qemu_process(int pid, const std::string& proc_root = "/proc");
// The same of any VMM.
Result<VmmProcess> read_vmm_process(int pid, const std::string& proc_root = "/proc");

// A pidfd that certainly means this process: gone when the pid is free or another's.
Result<UniqueFd> open_pidfd(const ProcessIdentity& identity);
// True when the process behind a pidfd has ended; false at the end of `wait`.
bool has_ended(const UniqueFd& pidfd, Milliseconds wait);

// invalid when libvirt manages this QEMU: it would take the move for a crash, and its monitors are
// inherited descriptors.
Result<void> refuse_libvirt_guest(const VmmProcess& process);

}  // namespace pageferry
