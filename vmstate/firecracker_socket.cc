// On a stream socket a message may come in pieces: its brackets say when it is whole, and its descriptor may come with any of them.
#include "vmstate/firecracker_socket.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "vmstate/local_socket.h"

namespace pageferry {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{16} << 10;
constexpr std::size_t kDescriptorsTaken = 8;  // of one piece; one would be right
constexpr int kPeerPidfd = 77;  // SO_PEERPIDFD of Linux 6.5, which Debian 12's headers lack

// What has come so far.
struct Incoming {
  std::string text;
  std::vector<UniqueFd> descriptors;
};

Result<void> receive_piece(int connection, Incoming& incoming) {
  std::vector<char> piece(kPieceBytes);
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kDescriptorsTaken * sizeof(int))> control{};
  iovec part{.iov_base = piece.data(), .iov_len = piece.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t got = ::recvmsg(connection, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (got < 0) {
    if (errno == EINTR || errno == EAGAIN) return {};
    return syscall_error("recvmsg", "Firecracker's connection");
  }
  take_descriptors(message, incoming.descriptors);
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    return fail(Errc::invalid, fmt::format("the client sent more than {} descriptors, 1 is right",
                                           kDescriptorsTaken));
  }
  if (got == 0) {
    return fail(Errc::gone,
                fmt::format("the client closed the connection after {} bytes and {} descriptors",
                            incoming.text.size(), incoming.descriptors.size()));
  }
  incoming.text.append(piece.data(), static_cast<std::size_t>(got));
  return {};
}

// What will be wrong whatever comes.
Result<void> check_so_far(const Incoming& incoming) {
  if (incoming.descriptors.size() > 1) {
    return fail(Errc::invalid, fmt::format("the client sent {} descriptors, 1 is right",
                                           incoming.descriptors.size()));
  }
  if (incoming.text.size() > kFirecrackerMessageBytesMax) {
    return fail(Errc::invalid,
                fmt::format("the client sent more than {} bytes", kFirecrackerMessageBytesMax));
  }
  if (extent_of_regions_message(incoming.text) == MessageExtent::no_array) {
    return fail(Errc::invalid, "what the client sent is no JSON array");
  }
  return {};
}

bool is_whole(const Incoming& incoming) {
  return !incoming.descriptors.empty() &&
         extent_of_regions_message(incoming.text) == MessageExtent::whole;
}

// Waits until `fd` has input. Errors: canceled, timeout.
Result<void> wait_for_input(int fd, Deadline deadline, const CancelSignal& stop) {
  std::array<pollfd, 2> entries{{{.fd = fd, .events = POLLIN, .revents = 0},
                                 {.fd = stop.fd(), .events = POLLIN, .revents = 0}}};
  for (;;) {
    const int ready = ::poll(entries.data(), entries.size(), deadline.poll_timeout_ms());
    if (ready < 0 && errno != EINTR) return syscall_error("poll", "Firecracker's socket");
    if (stop.canceled()) return fail(Errc::canceled, "stopped while waiting for Firecracker");
    if (ready > 0 && entries[0].revents != 0) return {};
    if (deadline.passed()) return fail(Errc::timeout, "nothing came");
  }
}

// nullopt: the client closed the connection without a word, as somebody does who looks whether anybody listens.
Result<std::optional<Incoming>> receive_message(int connection, Milliseconds patience,
                                                const CancelSignal& stop) {
  const MonotonicClock clock;
  const Deadline deadline = Deadline::after(clock, patience);
  Incoming incoming;
  while (!is_whole(incoming)) {
    if (auto waited = wait_for_input(connection, deadline, stop); !waited) {
      if (waited.error().code != Errc::timeout) {
        return tl::make_unexpected(std::move(waited).error());
      }
      return fail(Errc::timeout,
                  fmt::format("the client sent {} bytes and {} descriptors within {} ms, and no "
                              "whole region list with 1 descriptor",
                              incoming.text.size(), incoming.descriptors.size(), patience.count()));
    }
    if (auto received = receive_piece(connection, incoming); !received) {
      const bool nothing = incoming.text.empty() && incoming.descriptors.empty();
      if (nothing && received.error().code == Errc::gone) return std::optional<Incoming>();
      return tl::make_unexpected(std::move(received).error());
    }
    PF_TRY(check_so_far(incoming));
  }
  return std::optional<Incoming>(std::move(incoming));
}

// Invalid where there is none: the client is in a process namespace that is not seen from here.
UniqueFd process_of(int connection, pid_t pid) {
  int process = -1;
  socklen_t size = sizeof process;
  if (::getsockopt(connection, SOL_SOCKET, kPeerPidfd, &process, &size) == 0) {
    return UniqueFd(process);
  }
  if (pid <= 0) return UniqueFd();
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
}

}  // namespace

Result<FirecrackerSocket> FirecrackerSocket::listen(std::string path) {
  PF_ASSIGN(UniqueFd listener, listen_at(path, SOCK_STREAM, 1));
  return FirecrackerSocket(std::move(path), std::move(listener));
}

FirecrackerSocket::FirecrackerSocket(FirecrackerSocket&& other) noexcept
    : path_(std::move(other.path_)), listener_(std::move(other.listener_)) {}

FirecrackerSocket::~FirecrackerSocket() {
  if (listener_.valid()) ::unlink(path_.c_str());
}

Result<UniqueFd> FirecrackerSocket::accept_one(const CancelSignal& stop) const {
  for (;;) {
    PF_TRY(wait_for_input(listener_.get(), Deadline::never(), stop));
    UniqueFd connection(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (connection.valid()) return connection;
    // It went away again.
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
      return syscall_error("accept", path_);
    }
  }
}

Result<FirecrackerClient> FirecrackerSocket::take_client(std::uint64_t source_pages,
                                                         Milliseconds patience,
                                                         const CancelSignal& stop) {
  for (;;) {
    FirecrackerClient client;
    PF_ASSIGN(client.connection, accept_one(stop));
    PF_ASSIGN(const ucred peer, check_peer(client.connection.get(), "the client"));
    client.pid = peer.pid;
    client.process = process_of(client.connection.get(), peer.pid);
    PF_ASSIGN(auto incoming, receive_message(client.connection.get(), patience, stop));
    if (!incoming) continue;
    client.userfault = std::move(incoming->descriptors.front());
    PF_TRY(check_userfault("the client's", client.userfault));
    PF_ASSIGN(client.regions, decode_firecracker_regions(incoming->text, source_pages));
    return client;
  }
}

}  // namespace pageferry
