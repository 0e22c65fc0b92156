// Descriptors are found by the links in /proc/PID/fd and copied by pidfd_getfd(2).
#include "transport/os/process_descriptors.h"

#include <dirent.h>
#include <fmt/format.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <memory>

namespace pageferry {
namespace {

struct CloseDirectory {
  void operator()(DIR* directory) const { ::closedir(directory); }
};

Unexpected refused(std::string_view call, const std::string& subject, int error) {
  Unexpected reason = syscall_error(call, subject, error);
  if (error == EACCES || error == EPERM) reason.value().code = Errc::unsupported;
  if (error == EBADF) reason.value().code = Errc::not_found;
  return reason;
}

bool points_to(int directory, const char* name, std::string_view target) {
  std::array<char, 64> link{};
  const ssize_t length = ::readlinkat(directory, name, link.data(), link.size());
  return length > 0 && std::string_view(link.data(), static_cast<std::size_t>(length)) == target;
}

}  // namespace

Result<std::vector<int>> descriptors_of(int pid, std::optional<std::string_view> target) {
  const std::string path = fmt::format("/proc/{}/fd", pid);
  const std::unique_ptr<DIR, CloseDirectory> directory(::opendir(path.c_str()));
  if (!directory) {
    if (errno == ENOENT) return fail(Errc::gone, fmt::format("process {} has ended", pid));
    return refused("opendir", path, errno);
  }
  std::vector<int> found;
  while (const dirent* entry = ::readdir(directory.get())) {
    const std::string_view name(entry->d_name);
    int fd = -1;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), fd);
    if (error != std::errc() || end != name.data() + name.size()) continue;
    if (target && !points_to(::dirfd(directory.get()), entry->d_name, *target)) continue;
    found.push_back(fd);
  }
  std::sort(found.begin(), found.end());
  return found;
}

Result<UniqueFd> duplicate_descriptor(const UniqueFd& pidfd, int fd) {
  UniqueFd duplicate(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), fd, 0)));
  if (!duplicate.valid()) return refused("pidfd_getfd", fmt::format("descriptor {}", fd), errno);
  return duplicate;
}

Result<void> check_may_duplicate(const UniqueFd& pidfd, int fd) {
  const pid_t child = ::fork();
  if (child < 0) return syscall_error("fork", "trial of pidfd_getfd");
  if (child == 0) {
    const long duplicate = ::syscall(SYS_pidfd_getfd, pidfd.get(), fd, 0);
    ::_exit(duplicate < 0 ? errno : 0);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return syscall_error("waitpid", "trial of pidfd_getfd");
  }
  if (!WIFEXITED(status)) return fail(Errc::io, "the trial of pidfd_getfd was killed");
  const int error = WEXITSTATUS(status);
  if (error != 0) return refused("pidfd_getfd", fmt::format("descriptor {}", fd), error);
  return {};
}

}  // namespace pageferry
