// Start: exec, then try the monitor until it answers or the process has ended. Between two tries we
// wait on the process (its pidfd), so an early death is seen at once and nothing is slept through.
// End: quit, terminate, kill, each with its bound, each through the pidfd.
#include "vmstate/qemu_spawn.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>

#include "vmstate/qemu_child.h"

namespace pageferry {
namespace {

constexpr std::size_t kLogLinesInError = 4;
constexpr std::size_t kLogTailBytes = 8192;
constexpr Milliseconds kRetryInterval{10};  // between two tries of a socket that is not there yet

Error with_log(Error error, const std::string& log_file) {
  const std::string lines = last_lines_of(log_file, kLogLinesInError);
  error.message +=
      lines.empty() ? fmt::format(" (nothing in {})", log_file) : fmt::format(": {}", lines);
  return error;
}

// Kills a start that failed, with all of its session that is left in its process group.
void give_up(const StartedChild& child) {
  ::kill(-child.pid, SIGKILL);  // the group is ours: it leads a session we made, and the pid is
                                // held until we reap it
  ::kill(child.pid, SIGKILL);
  constexpr Milliseconds kDeathBound{5000};
  has_ended(child.pidfd, kDeathBound);
  reap(child.pid);
}

// Waits a little before the monitor is tried again; fails if there is nothing left to wait for.
Result<void> check_child(const StartedChild& child, LaunchKind kind, std::string_view what) {
  if (!has_ended(child.pidfd, kRetryInterval)) return {};
  const std::string how = how_it_ended(child.pid);
  if (kind == LaunchKind::qemu || how != "exit status 0") {
    return fail(
        Errc::vmm,
        fmt::format("{} ended at its start ({})",
                    kind == LaunchKind::qemu ? what : std::string_view("the command"), how));
  }
  ::poll(nullptr, 0,
         static_cast<int>(kRetryInterval.count()));  // the shell is gone: only time is left
  return {};
}

Result<void> wait_until_connected(const QemuLaunch& launch, std::string_view what,
                                  const StartedChild& child,
                                  const std::function<Result<void>()>& connected,
                                  Deadline deadline) {
  for (;;) {
    auto done = connected();
    if (done) return done;
    const Errc code = done.error().code;
    PF_TRY(check_child(child, launch.kind, what));
    if (code != Errc::not_found && code != Errc::gone) return done;
    if (deadline.passed()) {
      return fail(Errc::timeout,
                  fmt::format("{} does not answer at {} in time", what, launch.qmp_socket));
    }
  }
}

Result<bool> signal_and_wait(const UniqueFd& pidfd, int signal, Milliseconds bound) {
  if (::syscall(SYS_pidfd_send_signal, pidfd.get(), signal, nullptr, 0) != 0) {
    if (errno == ESRCH) return true;
    return syscall_error("pidfd_send_signal", fmt::format("signal {}", signal));
  }
  return has_ended(pidfd, bound);
}

}  // namespace

QemuLaunch launch_as_source(const VmmProcess& source, const std::string& run_directory) {
  QemuLaunch launch;
  launch.working_directory = source.working_directory;
  launch.uid = source.uid;
  launch.gid = source.gid;
  launch.groups = source.groups;
  launch.log_file = run_directory + "/qemu.log";
  return launch;
}

Result<void> start_vmm(const QemuLaunch& launch, std::string_view what,
                       const std::function<Result<void>()>& connected, Deadline deadline) {
  PF_ASSIGN(const StartedChild child, start_detached(launch));
  auto running = wait_until_connected(launch, what, child, connected, deadline);
  if (running) {
    reap(child.pid);  // a shell that has done its part
    return running;
  }
  give_up(child);
  return tl::make_unexpected(with_log(std::move(running.error()), launch.log_file));
}

Result<RunningQemu> start_qemu(const QemuLaunch& launch, Deadline deadline) {
  RunningQemu started;
  PF_TRY(start_vmm(
      launch, "the destination's QEMU",
      [&]() -> Result<void> {
        PF_ASSIGN(started.qmp, QmpClient::connect(launch.qmp_socket, deadline));
        PF_ASSIGN(started.identity, identify_process(started.qmp->peer().pid));
        return {};
      },
      deadline));
  return started;
}

Result<EndedBy> end_qemu(const ProcessIdentity& identity, QmpClient* qmp, const EndBounds& bounds) {
  const auto pidfd = open_pidfd(identity);
  if (!pidfd) {
    if (pidfd.error().code != Errc::gone) return tl::make_unexpected(pidfd.error());
    reap(identity.pid);
    return EndedBy::was_gone;
  }
  const MonotonicClock clock;
  if (qmp != nullptr && qmp->unbroken()) {
    const Deadline until = Deadline::after(clock, bounds.after_quit);
    const auto asked = qmp->execute("quit", nlohmann::json(), until);
    const bool dying = asked || asked.error().code == Errc::gone;
    if (dying && has_ended(*pidfd, Milliseconds(until.poll_timeout_ms()))) {
      reap(identity.pid);
      return EndedBy::quit;
    }
  }
  PF_ASSIGN(const bool terminated, signal_and_wait(*pidfd, SIGTERM, bounds.after_terminate));
  if (terminated) {
    reap(identity.pid);
    return EndedBy::terminate;
  }
  PF_ASSIGN(const bool killed, signal_and_wait(*pidfd, SIGKILL, bounds.after_kill));
  if (!killed) {
    return fail(Errc::timeout,
                fmt::format("QEMU {} does not end {} ms after SIGKILL: it is stuck in the kernel",
                            identity.pid, bounds.after_kill.count()));
  }
  reap(identity.pid);
  return EndedBy::kill;
}

std::string last_lines_of(const std::string& log_file, std::size_t lines_max) {
  const UniqueFd fd(::open(log_file.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  struct stat status {};
  if (!fd.valid() || ::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode)) return "";
  std::array<char, kLogTailBytes> tail{};
  const off_t begin = std::max<off_t>(0, status.st_size - static_cast<off_t>(tail.size()));
  const ssize_t got = ::pread(fd.get(), tail.data(), tail.size(), begin);
  if (got <= 0) return "";
  std::string joined;
  std::size_t lines = 0;
  std::string_view text(tail.data(), static_cast<std::size_t>(got));
  while (!text.empty() && lines < lines_max) {
    const auto last = text.find_last_not_of("\r\n");
    if (last == std::string_view::npos) break;
    text = text.substr(0, last + 1);
    const auto newline = text.rfind('\n');
    const auto start = newline == std::string_view::npos ? 0 : newline + 1;
    std::string line;
    for (const char c : text.substr(start)) {
      const auto byte = static_cast<unsigned char>(c);
      line += byte < 0x20 || byte == 0x7f ? '?' : c;
    }
    joined = joined.empty() ? line : fmt::format("{} | {}", line, joined);
    text = text.substr(0, start);
    ++lines;
  }
  return joined;
}

}  // namespace pageferry
