// A socket pair, not a listening socket: a QEMU that runs as another user, or in a mount namespace
// of its own, cannot open a path of ours, but it takes a descriptor (getfd). Buffers are asked for
// large, so that neither side waits for the other between two reads; how large they become does not
// matter for being right.
#include "vmstate/capture_channel.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>

#include "vmstate/qemu_return_path.h"

namespace pageferry {
namespace {

// How much may lie between QEMU and us. It bounds how far QEMU runs ahead of a reader that stops,
// and what both copy through stays in the caches: with 4 MiB the copies cost up to twice the time.
constexpr int kBufferBytes = 256 << 10;

// SO_SNDBUFFORCE needs CAP_NET_ADMIN; without it the system's limit (net.core.wmem_max) cuts the
// wish down silently.
void set_buffers(int fd, int bytes) {
  for (const auto& [forced, plain] :
       {std::pair{SO_SNDBUFFORCE, SO_SNDBUF}, std::pair{SO_RCVBUFFORCE, SO_RCVBUF}}) {
    if (::setsockopt(fd, SOL_SOCKET, forced, &bytes, sizeof bytes) != 0) {
      static_cast<void>(::setsockopt(fd, SOL_SOCKET, plain, &bytes, sizeof bytes));
    }
  }
}

}  // namespace

Result<std::unique_ptr<CaptureChannel>> CaptureChannel::create() {
  std::array<int, 2> fds{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) != 0) {
    return syscall_error("socketpair", "migration stream");
  }
  UniqueFd ours(fds[0]);
  UniqueFd vmm(fds[1]);
  set_buffers(ours.get(), kBufferBytes);
  set_buffers(vmm.get(), kBufferBytes);
  return std::unique_ptr<CaptureChannel>(new CaptureChannel(std::move(ours), std::move(vmm)));
}

Result<std::size_t> CaptureChannel::receive(std::span<std::byte> buffer) {
  while (true) {
    const ssize_t got = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno == ECONNRESET) return 0;  // QEMU closed with words of ours unread
    if (errno != EINTR) return syscall_error("recv", "migration stream");
  }
}

Result<void> CaptureChannel::send(std::span<const std::byte> message) {
  if (closed()) return fail(Errc::canceled, "migration stream: closed by us");
  return send_all(message);
}

Result<void> CaptureChannel::send_all(std::span<const std::byte> message) {
  while (true) {
    const ssize_t sent = ::send(fd_.get(), message.data(), message.size(), MSG_NOSIGNAL);
    if (sent == static_cast<ssize_t>(message.size())) return {};
    if (sent >= 0) return fail(Errc::io, "return path: the socket took only part of a message");
    if (errno != EINTR) return syscall_error("send", "return path");
  }
}

Result<void> CaptureChannel::commit() {
  End expected = End::open;
  if (!end_.compare_exchange_strong(expected, End::committed)) {
    return fail(Errc::canceled, expected == End::closed
                                    ? "migration stream: closed before SHUT(0)"
                                    : "migration stream: SHUT(0) was sent before");
  }
  ByteBuffer message;
  qemu_stream::append_shut(message, 0);
  return send_all(message);
}

bool CaptureChannel::close() {
  End expected = End::open;
  if (!end_.compare_exchange_strong(expected, End::closed)) return expected == End::closed;
  static_cast<void>(::shutdown(fd_.get(), SHUT_RDWR));
  return true;
}

}  // namespace pageferry
