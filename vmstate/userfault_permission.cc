// Whether QEMU may use userfaultfd depends on who QEMU is, so a child becomes that user and tries. Two ways exist:
//   /dev/userfaultfd    a device file, access by its mode (Linux 6.1, QEMU 8.0)
//   userfaultfd(2)      needs CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1, for faults in the kernel, which KVM makes
// A guest under KVM faults in the kernel, so UFFD_USER_MODE_ONLY, which everybody may have, does not help.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "transport/os/fd.h"
#include "vmstate/qemu_preflight.h"

namespace pageferry {
namespace {

constexpr int kQemuWithDevice = 80000;  // 8.0 looks for /dev/userfaultfd first

// --- in the child: system calls only ---

int errno_of(long result) {
  return result < 0 ? errno : 0;
}

int become_user(const UserIds& user) {
  if (::geteuid() == 0) {
    if (const int error =
            errno_of(::syscall(SYS_setgroups, user.groups.size(), user.groups.data()));
        error != 0)
      return error;
  }
  if (::getegid() != user.gid) {
    if (const int error = errno_of(::syscall(SYS_setresgid, user.gid, user.gid, user.gid));
        error != 0)
      return error;
  }
  if (::geteuid() != user.uid)
    return errno_of(::syscall(SYS_setresuid, user.uid, user.uid, user.uid));
  return 0;
}

int try_device() {
  const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device < 0) return errno;
  return errno_of(::ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC));
}

[[noreturn]] void try_and_report(const UserIds& user, int report_fd) {
  UserfaultTrial trial;
  trial.become_user_errno = become_user(user);
  if (trial.become_user_errno == 0) {
    trial.device_errno = try_device();
    trial.syscall_errno = errno_of(::syscall(SYS_userfaultfd, O_CLOEXEC));
  }
  const ssize_t written = ::write(report_fd, &trial, sizeof(trial));
  ::_exit(written == static_cast<ssize_t>(sizeof(trial)) ? 0 : 1);
}

std::string outcome(int error_number) {
  return error_number == 0
             ? "works"
             : fmt::format("{} (errno {})", std::strerror(error_number), error_number);
}

}  // namespace

Finding judge_userfaultfd(const UserIds& user, int qemu_version, const UserfaultTrial& trial) {
  if (trial.become_user_errno != 0) {
    return {Severity::warning, "userfaultfd",
            fmt::format("whether user {} may use userfaultfd is not known: we may not become that "
                        "user to try it: {}",
                        user.uid, outcome(trial.become_user_errno))};
  }
  const bool uses_device = qemu_version >= kQemuWithDevice;
  const std::string ways = fmt::format("/dev/userfaultfd{}: {}; userfaultfd(2): {}",
                                       uses_device ? "" : " (which QEMU uses from 8.0 on)",
                                       outcome(trial.device_errno), outcome(trial.syscall_errno));
  if (trial.syscall_errno == 0 || (uses_device && trial.device_errno == 0)) {
    return {Severity::note, "userfaultfd",
            fmt::format("user {} may use userfaultfd ({})", user.uid, ways)};
  }
  const std::string way_out =
      uses_device
          ? "give that user access to /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1"
          : "set vm.unprivileged_userfaultfd=1";
  return {Severity::refusal, "userfaultfd",
          fmt::format("user {}, whom QEMU runs as, may not use userfaultfd ({}): {}", user.uid,
                      ways, way_out)};
}

Result<Finding> check_userfaultfd(const UserIds& user, int qemu_version) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return syscall_error("pipe", "userfaultfd trial");
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  const pid_t pid = ::fork();
  if (pid < 0) return syscall_error("fork", "userfaultfd trial");
  if (pid == 0) try_and_report(user, write_end.get());
  write_end.reset();
  UserfaultTrial trial;
  ssize_t got = 0;
  do {
    got = ::read(read_end.get(), &trial, sizeof(trial));
  } while (got < 0 && errno == EINTR);
  const int read_errno = got < 0 ? errno : 0;
  ::waitpid(pid, nullptr, 0);
  if (read_errno != 0) return syscall_error("read", "userfaultfd trial", read_errno);
  if (got != static_cast<ssize_t>(sizeof(trial))) {
    return fail(Errc::io,
                fmt::format("userfaultfd trial as user {} ended without an answer", user.uid));
  }
  return judge_userfaultfd(user, qemu_version, trial);
}

}  // namespace pageferry
