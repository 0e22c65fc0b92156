// A packet that does not fit the buffer is cut by the kernel, and says so (MSG_TRUNC); so do descriptors (MSG_CTRUNC). What came with such
// a packet is closed again.
#include "vmstate/hook_packet.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "vmstate/hook_protocol.h"
#include "vmstate/local_socket.h"

namespace pageferry {

Result<void> send_hook_packet(int connection, std::span<const std::byte> packet, int descriptor) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  iovec part{.iov_base = const_cast<std::byte*>(packet.data()), .iov_len = packet.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (descriptor >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof descriptor);
    std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
  }
  while (::sendmsg(connection, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    if (errno == EINTR) continue;
    const int error = errno;
    Unexpected reason = syscall_error("sendmsg", "hook connection", error);
    if (error == EAGAIN) reason.value().code = Errc::busy;
    return reason;
  }
  return {};
}

Result<HookPacket> receive_hook_packet(int connection) {
  HookPacket packet;
  packet.bytes.resize(hook_protocol::kPacketBytesMax);
  alignas(cmsghdr) std::array<char, CMSG_SPACE(4 * sizeof(int))> control{};
  iovec part{.iov_base = packet.bytes.data(), .iov_len = packet.bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t got = -1;
  do {
    got = ::recvmsg(connection, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    const int error = errno;
    Unexpected reason = syscall_error("recvmsg", "hook connection", error);
    if (error == EAGAIN) reason.value().code = Errc::timeout;
    return reason;
  }
  take_descriptors(message, packet.descriptors);
  if (got == 0 && packet.descriptors.empty()) return fail(Errc::gone, "the connection was closed");
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 || packet.descriptors.size() > 1) {
    return fail(Errc::invalid, fmt::format("a packet of more than {} bytes, or with more than 1 "
                                           "descriptor",
                                           packet.bytes.size()));
  }
  packet.bytes.resize(static_cast<std::size_t>(got));
  return packet;
}

}  // namespace pageferry
