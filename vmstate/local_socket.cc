// A socket's mode is that of the descriptor that is bound (Linux), so that it is set before there is a name: no umask has to be changed,
// which would be one of the whole process.
#include "vmstate/local_socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "transport/os/process_descriptors.h"

namespace pageferry {
namespace {

// Makes room for a new socket at the path, if what is there is one that nobody listens on.
Result<void> remove_dead_socket(const std::string& path, const sockaddr_un& address) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return {};
    return syscall_error("lstat", path);
  }
  if (!S_ISSOCK(status.st_mode)) {
    return fail(Errc::exists, fmt::format("{} is there and is no socket", path));
  }
  const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe.valid()) return syscall_error("socket", path);
  // A socket of another type that somebody listens on answers EPROTOTYPE.
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ||
      errno != ECONNREFUSED) {
    return fail(Errc::exists, fmt::format("somebody listens on {}", path));
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return syscall_error("unlink", path);
  return {};
}

Unexpected connect_error(const std::string& path, int error) {
  Unexpected reason = syscall_error("connect", path, error);
  Errc& code = reason.value().code;
  if (error == ECONNREFUSED || error == ENOENT || error == EPROTOTYPE) code = Errc::not_found;
  if (error == EACCES || error == EPERM) code = Errc::not_owner;
  if (error == EAGAIN || error == EINPROGRESS) code = Errc::timeout;
  return reason;
}

}  // namespace

Result<sockaddr_un> local_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return fail(Errc::invalid, fmt::format("socket path '{}' has {} bytes, limit 1..{}", path,
                                           path.size(), sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<UniqueFd> listen_at(const std::string& path, int type, int backlog) {
  PF_ASSIGN(const sockaddr_un address, local_address(path));
  PF_TRY(remove_dead_socket(path, address));
  UniqueFd listener(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener.valid()) return syscall_error("socket", path);
  if (::fchmod(listener.get(), 0600) != 0) return syscall_error("fchmod", path);
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno == EADDRINUSE) {
      return fail(Errc::exists, fmt::format("somebody has just taken {}", path));
    }
    return syscall_error("bind", path);
  }
  if (::listen(listener.get(), backlog) != 0) {
    Unexpected reason = syscall_error("listen", path);
    ::unlink(path.c_str());
    return reason;
  }
  return listener;
}

Result<UniqueFd> connect_to(const std::string& path, int type, Deadline deadline) {
  PF_ASSIGN(const sockaddr_un address, local_address(path));
  UniqueFd connection(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!connection.valid()) return syscall_error("socket", path);
  for (;;) {
    // With a full queue connect(2) waits as long as send(2) would. 0 would be for ever.
    const int ms = deadline.poll_timeout_ms();
    const timeval patience{.tv_sec = ms < 0 ? 0 : ms / 1000,
                           .tv_usec = ms < 0 ? 0 : std::max(ms % 1000 * 1000, 1000)};
    if (::setsockopt(connection.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) != 0) {
      return syscall_error("SO_SNDTIMEO", path);
    }
    if (::connect(connection.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) ==
        0) {
      return connection;
    }
    if (errno != EINTR) return connect_error(path, errno);
    if (deadline.passed()) return connect_error(path, EAGAIN);
  }
}

Result<ucred> peer_of(int connection, std::string_view who) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return syscall_error("SO_PEERCRED", who);
  }
  return peer;
}

Result<ucred> check_peer(int connection, std::string_view who) {
  PF_ASSIGN(const ucred peer, peer_of(connection, who));
  if (peer.uid == 0 || peer.uid == ::geteuid()) return peer;
  return fail(Errc::not_owner, fmt::format("{}, process {}, is of user {}, must be of user {} or "
                                           "root",
                                           who, peer.pid, peer.uid, ::geteuid()));
}

void take_descriptors(msghdr& message, std::vector<UniqueFd>& descriptors) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
       part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int descriptor = -1;
      std::memcpy(&descriptor, CMSG_DATA(part) + i * sizeof(int), sizeof descriptor);
      descriptors.emplace_back(descriptor);
    }
  }
}

Result<void> check_userfault(std::string_view whose, const UniqueFd& descriptor) {
  std::array<char, 256> link{};
  const std::string path = fmt::format("/proc/self/fd/{}", descriptor.get());
  const ssize_t bytes = ::readlink(path.c_str(), link.data(), link.size());
  if (bytes < 0) return syscall_error("readlink", path);
  const std::string_view what(link.data(), static_cast<std::size_t>(bytes));
  if (what != kUserfaultDescriptor) {
    return fail(Errc::invalid,
                fmt::format("{} descriptor is '{}' and no userfaultfd", whose, what));
  }
  const int flags = ::fcntl(descriptor.get(), F_GETFL);
  if (flags < 0) return syscall_error("fcntl", fmt::format("{} userfaultfd", whose));
  if ((flags & O_NONBLOCK) != 0) return {};
  return fail(Errc::invalid, fmt::format("{} userfaultfd was opened without O_NONBLOCK", whose));
}

}  // namespace pageferry
