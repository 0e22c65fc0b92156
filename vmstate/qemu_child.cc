// fork and exec with everything prepared beforehand: between the two only system calls are made,
// since a thread of ours may hold any lock at the moment of the fork. What fails in the child comes
// back through a pipe that exec closes.
//
// Not posix_spawn: it cannot change the user or the groups.
#include "vmstate/qemu_child.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <linux/close_range.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <vector>

namespace pageferry {
namespace {

// What the child was doing when it failed; written as one struct through a pipe between two halves
// of one program.
enum class Step : int { session, stdio, close_others, directory, groups, group, user, exec };

struct ChildFailure {
  Step step;
  int error_number;
};

const char* name_of(Step step) {
  switch (step) {
    case Step::session:
      return "setsid";
    case Step::stdio:
      return "dup2";
    case Step::close_others:
      return "close_range";
    case Step::directory:
      return "chdir";
    case Step::groups:
      return "setgroups";
    case Step::group:
      return "setresgid";
    case Step::user:
      return "setresuid";
    case Step::exec:
      return "exec";
  }
  return "?";
}

struct Prepared {
  std::string program;
  std::vector<char*> argv;
  UniqueFd null;
  UniqueFd log;
  UniqueFd failure_read;
  UniqueFd failure_write;
};

bool is_program(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) &&
         ::access(path.c_str(), X_OK) == 0;
}

Result<std::string> find_program(const QemuLaunch& launch) {
  const std::string& name = launch.executable.empty() ? launch.argv.front() : launch.executable;
  if (name.find('/') != std::string::npos) {
    const std::string path = name.front() == '/' ? name : launch.working_directory + "/" + name;
    if (is_program(path)) return path;
    return fail(Errc::invalid, fmt::format("{} is no program that can be run", path));
  }
  const char* search = std::getenv("PATH");
  const std::string directories = search != nullptr ? search : "/usr/bin:/bin";
  for (std::size_t at = 0; at <= directories.size();) {
    const auto end = std::min(directories.find(':', at), directories.size());
    const std::string path = directories.substr(at, end - at) + "/" + name;
    if (end > at && is_program(path)) return path;
    at = end + 1;
  }
  return fail(Errc::invalid, fmt::format("program {} is in no directory of PATH", name));
}

Result<Prepared> prepare(const QemuLaunch& launch) {
  if (launch.argv.empty()) return fail(Errc::invalid, "no command line to start QEMU with");
  Prepared prepared;
  PF_ASSIGN(prepared.program, find_program(launch));
  for (const std::string& argument : launch.argv)
    prepared.argv.push_back(const_cast<char*>(argument.c_str()));
  prepared.argv.push_back(nullptr);
  prepared.null = UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!prepared.null.valid()) return syscall_error("open", "/dev/null");
  constexpr mode_t kPrivateFile = 0600;
  prepared.log =
      UniqueFd(::open(launch.log_file.c_str(),
                      O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, kPrivateFile));
  if (!prepared.log.valid()) return syscall_error("open", launch.log_file);
  if (launch.uid != ::geteuid() && ::fchown(prepared.log.get(), launch.uid, launch.gid) != 0) {
    return syscall_error("chown", launch.log_file);
  }
  for (const std::string& fifo : launch.fifos) {
    if (::mkfifo(fifo.c_str(), kPrivateFile) != 0) return syscall_error("mkfifo", fifo);
    if (launch.uid != ::geteuid() && ::lchown(fifo.c_str(), launch.uid, launch.gid) != 0)
      return syscall_error("chown", fifo);
  }
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return syscall_error("pipe", "start of QEMU");
  prepared.failure_read = UniqueFd(ends[0]);
  prepared.failure_write = UniqueFd(ends[1]);
  return prepared;
}

// --- in the child: system calls only ---

[[noreturn]] void report_and_exit(const Prepared& prepared, Step step) {
  const ChildFailure failure{.step = step, .error_number = errno};
  const ssize_t written = ::write(prepared.failure_write.get(), &failure, sizeof(failure));
  ::_exit(written == static_cast<ssize_t>(sizeof(failure)) ? 126 : 127);
}

void reset_signals() {
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  for (int signal = 1; signal < NSIG; ++signal)
    ::sigaction(signal, &standard, nullptr);  // SIGKILL and SIGSTOP refuse: fine
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

// The raw calls: glibc's wrappers signal every thread of the parent's list, which do not exist
// here.
void become_user(const QemuLaunch& launch, const Prepared& prepared) {
  if (::geteuid() == 0) {
    if (::syscall(SYS_setgroups, launch.groups.size(), launch.groups.data()) != 0)
      report_and_exit(prepared, Step::groups);
  }
  if (::getegid() != launch.gid &&
      ::syscall(SYS_setresgid, launch.gid, launch.gid, launch.gid) != 0) {
    report_and_exit(prepared, Step::group);
  }
  if (::geteuid() != launch.uid &&
      ::syscall(SYS_setresuid, launch.uid, launch.uid, launch.uid) != 0) {
    report_and_exit(prepared, Step::user);
  }
}

[[noreturn]] void run_child(const QemuLaunch& launch, const Prepared& prepared) {
  reset_signals();
  if (::setsid() < 0) report_and_exit(prepared, Step::session);
  if (::dup2(prepared.null.get(), STDIN_FILENO) < 0 ||
      ::dup2(prepared.log.get(), STDOUT_FILENO) < 0 ||
      ::dup2(prepared.log.get(), STDERR_FILENO) < 0) {
    report_and_exit(prepared, Step::stdio);
  }
  if (::syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC) != 0)
    report_and_exit(prepared, Step::close_others);
  if (::chdir(launch.working_directory.c_str()) != 0) report_and_exit(prepared, Step::directory);
  become_user(launch, prepared);
  ::execv(prepared.program.c_str(), prepared.argv.data());
  report_and_exit(prepared, Step::exec);
}

Unexpected failure_of(const ChildFailure& failure, const QemuLaunch& launch,
                      const Prepared& prepared) {
  const std::string subject =
      failure.step == Step::directory ? launch.working_directory : prepared.program;
  Error error = syscall_error(name_of(failure.step), subject, failure.error_number).value();
  const bool ids =
      failure.step == Step::groups || failure.step == Step::group || failure.step == Step::user;
  if (ids && failure.error_number == EPERM) {
    error.message += fmt::format("; only root can start a QEMU as user {} group {}, the source's",
                                 launch.uid, launch.gid);
  }
  return tl::make_unexpected(std::move(error));
}

}  // namespace

Result<StartedChild> start_detached(const QemuLaunch& launch) {
  PF_ASSIGN(Prepared prepared, prepare(launch));
  const pid_t pid = ::fork();
  if (pid < 0) return syscall_error("fork", prepared.program);
  if (pid == 0) run_child(launch, prepared);
  StartedChild child{.pid = pid,
                     .pidfd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)))};
  const int pidfd_error = child.pidfd.valid() ? 0 : errno;
  prepared.failure_write.reset();
  ChildFailure failure{};
  ssize_t got = 0;
  do {
    got = ::read(prepared.failure_read.get(), &failure, sizeof(failure));
  } while (got < 0 && errno == EINTR);
  if (got == static_cast<ssize_t>(sizeof(failure))) {
    ::waitpid(pid, nullptr, 0);
    return failure_of(failure, launch, prepared);
  }
  if (pidfd_error != 0) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return syscall_error("pidfd_open", prepared.program, pidfd_error);
  }
  return child;
}

std::string how_it_ended(int pid) {
  siginfo_t info{};
  const int rc = ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT);
  if (rc != 0 || info.si_pid != pid) return "";
  return fmt::format("{} {}", info.si_code == CLD_EXITED ? "exit status" : "signal",
                     info.si_status);
}

void reap(int pid) {
  ::waitpid(pid, nullptr, WNOHANG);
}

}  // namespace pageferry
