// posix_spawn with a socketpair as stdin and stdout. The agent gets its own session, so that Ctrl-C
// reaches us alone and we decide.
#include "tools/pageferry/destination_link.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <climits>

extern char** environ;

namespace pageferry {
namespace {

Result<pid_t> spawn_with_channel(const std::vector<std::string>& argv, int channel_fd) {
  std::vector<char*> arguments;
  arguments.reserve(argv.size() + 1);
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, channel_fd, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, channel_fd, STDOUT_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
  pid_t pid = -1;
  const int error =
      ::posix_spawnp(&pid, arguments[0], &actions, &attributes, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return syscall_error("posix_spawn", argv[0], error);
  return pid;
}

}  // namespace

std::string own_executable() {
  std::array<char, PATH_MAX> path{};
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size() - 1);
  return length > 0 ? std::string(path.data(), static_cast<std::size_t>(length)) : "pageferry";
}

Result<std::unique_ptr<DestinationLink>> DestinationLink::start(
    const std::vector<std::string>& argv) {
  PF_CHECK(!argv.empty());
  std::array<int, 2> pair{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) != 0) {
    return syscall_error("socketpair", "agent channel");
  }
  UniqueFd ours(pair[0]);
  const UniqueFd theirs(pair[1]);
  UniqueFd ours_for_reading(::fcntl(ours.get(), F_DUPFD_CLOEXEC, 0));
  if (!ours_for_reading.valid()) return syscall_error("dup", "agent channel");
  PF_ASSIGN(const pid_t pid, spawn_with_channel(argv, theirs.get()));
  return std::unique_ptr<DestinationLink>(
      new DestinationLink(pid, std::move(ours_for_reading), std::move(ours)));
}

bool DestinationLink::wait_for_exit(Deadline deadline) {
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  if (!pidfd.valid()) return true;
  pollfd waiting{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  while (true) {
    const int ready = ::poll(&waiting, 1, deadline.poll_timeout_ms());
    if (ready > 0) break;
    if (ready == 0 && deadline.passed()) return false;
  }
  ::waitpid(pid_, nullptr, WNOHANG);
  return true;
}

Error error_of_message(const nlohmann::json& message) {
  Error error;
  error.code = Errc::io;
  const std::string name = message.value("error-class", "");
  for (const Errc code : {Errc::io, Errc::no_space, Errc::corrupt, Errc::not_owner, Errc::version,
                          Errc::busy, Errc::timeout, Errc::canceled, Errc::gone, Errc::vmm,
                          Errc::invalid, Errc::unsupported, Errc::exists, Errc::not_found}) {
    if (errc_name(code) == name) error.code = code;
  }
  error.message = message.value("error-desc", "the destination failed without a word");
  return error;
}

}  // namespace pageferry
