// See monitor_socket.h. The one subtle thing is connect(): on a unix socket it blocks while the
// listener's backlog is full, and a non-blocking one fails at once with EAGAIN that poll cannot
// wait for; the send timeout of the socket bounds the blocking one.
#include "vmstate/monitor_socket.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <iterator>

namespace pageferry {
namespace {

constexpr std::size_t kPrintedBytesMax = 80;

}  // namespace

std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, kPrintedBytesMax)) {
    const auto byte = static_cast<unsigned char>(c);
    out += (byte >= 0x20 && byte < 0x7f) ? c : '?';
  }
  if (text.size() > kPrintedBytesMax) out += "...";
  return out;
}

Result<UniqueFd> connect_monitor(const std::string& path, Deadline deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return fail(Errc::invalid,
                fmt::format("monitor socket path \"{}\" has {} bytes, must have 1 to {}",
                            printable(path), path.size(), sizeof(address.sun_path) - 1));
  }
  if (path.find('\0') != std::string::npos) {
    return fail(Errc::invalid,
                fmt::format("monitor socket path \"{}\" contains a NUL", printable(path)));
  }
  std::copy(path.begin(), path.end(), std::begin(address.sun_path));

  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return syscall_error("socket", path);
  // A listener whose backlog is full (QEMU's is 1) blocks connect; the send timeout bounds that
  // wait.
  const int wait_ms = deadline.poll_timeout_ms();
  if (wait_ms >= 0) {
    const timeval bound{.tv_sec = wait_ms / 1000, .tv_usec = std::max(1, wait_ms % 1000 * 1000)};
    if (::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof(bound)) != 0) {
      return syscall_error("setsockopt SO_SNDTIMEO", path);
    }
  }
  int rc = 0;
  do {
    rc = ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  } while (rc != 0 && errno == EINTR && !deadline.passed());
  if (rc == 0) return fd;
  const int error_number = errno;
  if (error_number == EAGAIN || error_number == EINTR) {
    return fail(
        Errc::busy,
        fmt::format(
            "QMP monitor {} accepts no connection: another client holds it, and more are waiting",
            path));
  }
  if (error_number == ECONNREFUSED) {
    return fail(Errc::gone,
                fmt::format("QMP socket {} is dead: the file is there, but nobody listens", path));
  }
  if (error_number == ENOTSOCK || error_number == EPROTOTYPE) {
    return fail(Errc::invalid,
                fmt::format("{} is no QMP socket: {}", path, std::strerror(error_number)));
  }
  return syscall_error("connect", path, error_number);
}

bool wait_writable(int fd, const Deadline& deadline) {
  for (;;) {
    pollfd entry{.fd = fd, .events = POLLOUT, .revents = 0};
    const int ready = ::poll(&entry, 1, deadline.poll_timeout_ms());
    if (ready > 0) return true;
    if (ready == 0 || deadline.passed()) return false;
  }
}

ssize_t send_some(int socket_fd, std::string_view bytes, int attached_fd) {
  iovec piece{.iov_base = const_cast<char*>(bytes.data()), .iov_len = bytes.size()};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  if (attached_fd >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &attached_fd, sizeof(int));
  }
  return ::sendmsg(socket_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace pageferry
