// A flock, because the kernel lets go of it exactly when the last descriptor of its holder is
// closed: no stale lock, no timeout. POSIX record locks would vanish with any close of the file in
// the process. The content only serves people and take_over(), and is believed only while the lock
// is held by somebody.
//
// take_over() ends a holder that may be paused or stuck. A pid may be reused between reading and
// signalling, so: open a pidfd, then check that the process behind the pid is still the one named
// (start time); from there on the pidfd cannot mean another. And it must run our own program: a
// wrong content must not make root kill a stranger.
#include "transport/vm_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <utility>

#include "transport/vm_directory.h"

// glibc 2.36 forgot to declare these as C.
extern "C" {
#include <sys/pidfd.h>
}

namespace pageferry {
namespace {

// The QEMUs of other users have their directories below: they get through, and see nothing.
constexpr mode_t kLockDirectoryMode = 0711;
constexpr mode_t kFileMode = 0600;
constexpr mode_t kOthersWriteMask = 0022;
constexpr std::size_t kContentBytesMax = 64;

Result<void> check_trusted(int fd, const std::string& subject) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return syscall_error("fstat", subject);
  if (status.st_uid != ::geteuid()) {
    return fail(Errc::invalid, fmt::format("{}: it belongs to user {}, we are user {}", subject,
                                           status.st_uid, ::geteuid()));
  }
  if ((status.st_mode & kOthersWriteMask) != 0) {
    return fail(Errc::invalid, fmt::format("{}: mode {:04o} lets others write, want 0711", subject,
                                           status.st_mode & 07777U));
  }
  return {};
}

Result<UniqueFd> open_run_directory(const std::string& path) {
  std::string plain = path;
  while (plain.size() > 1 && plain.back() == '/') plain.pop_back();
  const bool made = ::mkdir(plain.c_str(), kLockDirectoryMode) == 0;
  if (!made && errno != EEXIST) return syscall_error("mkdir", plain);
  UniqueFd fd(::open(plain.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ELOOP || errno == ENOTDIR) {
      return fail(Errc::invalid, plain + ": it is a symlink or not a directory");
    }
    return syscall_error("open", plain);
  }
  PF_TRY(check_trusted(fd.get(), plain));
  if (made && ::fchmod(fd.get(), kLockDirectoryMode) != 0) return syscall_error("chmod", plain);
  return fd;
}

struct LockFile {
  UniqueFd fd;
  std::string path;
};

Result<LockFile> open_lock_file(const std::string& run_directory, std::string_view vm_name) {
  PF_TRY(validate_vm_name(vm_name));
  PF_ASSIGN(const UniqueFd directory, open_run_directory(run_directory));
  const std::string name = fmt::format("{}.lock", vm_name);
  LockFile file{UniqueFd(), run_directory + "/" + name};
  file.fd.reset(::openat(directory.get(), name.c_str(),
                         O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, kFileMode));
  if (!file.fd.valid()) {
    if (errno == ELOOP) return fail(Errc::invalid, file.path + ": it is a symlink");
    return syscall_error("open", file.path);
  }
  PF_TRY(check_trusted(file.fd.get(), file.path));
  return file;
}

enum class LockTry { locked, held_by_another };

Result<LockTry> try_lock(const LockFile& file) {
  while (::flock(file.fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return LockTry::held_by_another;
    if (errno != EINTR) return syscall_error("flock", file.path);
  }
  return LockTry::locked;
}

Result<void> write_holder(const LockFile& file) {
  PF_ASSIGN(const ProcessIdentity self, this_process());
  const std::string content = fmt::format("{} {}\n", self.pid, self.start_ticks);
  // A longer old content is cut first, so that no mixture can be read as a third process.
  if (::ftruncate(file.fd.get(), 0) != 0) return syscall_error("ftruncate", file.path);
  const ssize_t put = ::pwrite(file.fd.get(), content.data(), content.size(), 0);
  if (put < 0) return syscall_error("write", file.path);
  if (static_cast<std::size_t>(put) != content.size()) {
    return fail(Errc::no_space,
                fmt::format("{}: wrote {} of {} bytes", file.path, put, content.size()));
  }
  return {};
}

Result<std::optional<ProcessIdentity>> read_holder(const LockFile& file) {
  std::array<char, kContentBytesMax> buffer{};
  const ssize_t got = ::pread(file.fd.get(), buffer.data(), buffer.size(), 0);
  if (got < 0) return syscall_error("read", file.path);
  const char* const end = buffer.data() + got;
  ProcessIdentity holder;
  const auto pid = std::from_chars(buffer.data(), end, holder.pid);
  if (pid.ec != std::errc() || pid.ptr == end || *pid.ptr != ' ') return std::nullopt;
  const auto start = std::from_chars(pid.ptr + 1, end, holder.start_ticks);
  if (start.ec != std::errc() || start.ptr == end || *start.ptr != '\n' || holder.pid <= 0) {
    return std::nullopt;
  }
  return holder;
}

Unexpected busy(const LockFile& file, const std::optional<ProcessIdentity>& holder) {
  return fail(Errc::busy,
              holder ? fmt::format("{}: held by process {} (started at tick {})", file.path,
                                   holder->pid, holder->start_ticks)
                     : fmt::format("{}: held by a process that has not named itself", file.path));
}

Result<std::string> executable_of(const std::string& process) {
  constexpr std::size_t kPathBytesMax = std::size_t{4} << 10;
  const std::string link = "/proc/" + process + "/exe";
  std::string path(kPathBytesMax, '\0');
  const ssize_t size = ::readlink(link.c_str(), path.data(), path.size());
  if (size < 0) return syscall_error("readlink", link);
  path.resize(static_cast<std::size_t>(size));
  constexpr std::string_view kDeleted = " (deleted)";  // an upgrade replaced the file
  if (path.ends_with(kDeleted)) path.resize(path.size() - kDeleted.size());
  return path;
}

enum class Ended { yes, not_yet };

Result<Ended> signal_and_wait(int pidfd, int signal_number, Milliseconds patience,
                              const Clock& clock, const ProcessIdentity& holder) {
  const std::string subject = fmt::format("process {}", holder.pid);
  if (::pidfd_send_signal(pidfd, signal_number, nullptr, 0) != 0 && errno != ESRCH) {
    return syscall_error("pidfd_send_signal", subject);
  }
  const Deadline deadline = Deadline::after(clock, patience);
  pollfd waiting{pidfd, POLLIN, 0};
  while (true) {
    const int ready = ::poll(&waiting, 1, deadline.poll_timeout_ms());
    if (ready > 0) return Ended::yes;
    if (ready < 0 && errno != EINTR) return syscall_error("poll", subject);
    if (deadline.passed()) return Ended::not_yet;
  }
}

Result<void> end_holder(const LockFile& file, const ProcessIdentity& holder, const Clock& clock,
                        Milliseconds patience) {
  const UniqueFd pidfd(::pidfd_open(holder.pid, 0));
  if (!pidfd.valid()) {
    if (errno == ESRCH) return {};
    return syscall_error("pidfd_open", fmt::format("process {}", holder.pid));
  }
  PF_ASSIGN(const bool alive, is_alive(holder));
  if (!alive) return {};
  PF_ASSIGN(const std::string theirs, executable_of(std::to_string(holder.pid)));
  PF_ASSIGN(const std::string ours, executable_of("self"));
  if (theirs != ours) {
    return fail(Errc::busy, fmt::format("{}: process {} runs {}, not {}: not ended", file.path,
                                        holder.pid, theirs, ours));
  }
  PF_ASSIGN(Ended ended, signal_and_wait(pidfd.get(), SIGTERM, patience, clock, holder));
  if (ended == Ended::yes) return {};
  PF_ASSIGN(ended, signal_and_wait(pidfd.get(), SIGKILL, patience, clock, holder));
  if (ended == Ended::yes) return {};
  return fail(Errc::timeout,
              fmt::format("process {} does not end {} ms after SIGKILL: it is stuck in the kernel, "
                          "perhaps on a store that does not answer",
                          holder.pid, patience.count()));
}

}  // namespace

Result<std::string> choose_run_directory(std::string_view run_dir_option,
                                         std::string_view xdg_runtime_dir) {
  if (!run_dir_option.empty()) return std::string(run_dir_option);
  if (::geteuid() == 0) return std::string("/run/pageferry");
  if (!xdg_runtime_dir.empty()) return std::string(xdg_runtime_dir) + "/pageferry";
  return fail(Errc::invalid,
              "no directory for locks: not root, XDG_RUNTIME_DIR is not set; use --run-dir");
}

Result<VmLock> VmLock::acquire(const std::string& run_directory, std::string_view vm_name) {
  PF_ASSIGN(LockFile file, open_lock_file(run_directory, vm_name));
  PF_ASSIGN(const LockTry locked, try_lock(file));
  if (locked == LockTry::held_by_another) {
    PF_ASSIGN(const auto holder, read_holder(file));
    return busy(file, holder);
  }
  PF_TRY(write_holder(file));
  return VmLock(std::move(file.fd), std::move(file.path));
}

Result<VmLock> VmLock::take_over(const std::string& run_directory, std::string_view vm_name,
                                 const Clock& clock, Milliseconds patience) {
  auto taken = acquire(run_directory, vm_name);
  if (taken || taken.error().code != Errc::busy) return taken;
  PF_ASSIGN(const LockFile file, open_lock_file(run_directory, vm_name));
  PF_ASSIGN(const auto holder, read_holder(file));
  if (!holder) return busy(file, holder);
  PF_TRY(end_holder(file, *holder, clock, patience));
  return acquire(run_directory, vm_name);
}

Result<std::optional<ProcessIdentity>> VmLock::holder(const std::string& run_directory,
                                                      std::string_view vm_name) {
  PF_ASSIGN(const LockFile file, open_lock_file(run_directory, vm_name));
  // Not by trying the lock: that would make a tool that starts in this moment fail.
  PF_ASSIGN(const auto named, read_holder(file));
  if (!named) return std::nullopt;
  PF_ASSIGN(const bool alive, is_alive(*named));
  if (!alive) return std::nullopt;
  return named;
}

}  // namespace pageferry
