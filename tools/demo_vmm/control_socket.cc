// A poll loop over two descriptors. A client that says nothing is left after kClientSeconds.
#include "tools/demo_vmm/control_socket.h"

#include <fmt/core.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "transport/message_channel.h"
#include "transport/os/signals_blocked.h"

namespace pageferry::demo {
namespace {

constexpr Seconds kClientSeconds{2};

bool may_ask(int fd) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
  return peer.uid == 0 || peer.uid == ::geteuid();
}

}  // namespace

Result<std::unique_ptr<ControlSocket>> ControlSocket::start(const std::string& path,
                                                            Handler handler) {
  std::unique_ptr<ControlSocket> control(new ControlSocket(path, std::move(handler)));
  PF_TRY(control->listen());
  control->stop_event_.reset(::eventfd(0, EFD_CLOEXEC));
  if (!control->stop_event_.valid()) return syscall_error("eventfd", path);
  const SignalsBlocked blocked;
  control->thread_ = std::thread([self = control.get()] { self->run(); });
  return control;
}

ControlSocket::ControlSocket(std::string path, Handler handler)
    : path_(std::move(path)), handler_(std::move(handler)) {}

ControlSocket::~ControlSocket() {
  if (thread_.joinable()) {
    ::eventfd_write(stop_event_.get(), 1);
    thread_.join();
  }
  if (listener_.valid()) ::unlink(path_.c_str());
}

Result<void> ControlSocket::listen() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path_.empty() || path_.size() >= sizeof address.sun_path) {
    return fail(Errc::invalid, fmt::format("control socket '{}' has {} bytes, must be 1 to {}",
                                           path_, path_.size(), sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, path_.data(), path_.size());
  const auto* const name = reinterpret_cast<const sockaddr*>(&address);
  const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(probe.get(), name, sizeof address) == 0) {
    return fail(Errc::busy, fmt::format("control socket {}: somebody listens there", path_));
  }
  if (errno == ECONNREFUSED) ::unlink(path_.c_str());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return syscall_error("socket", path_);
  if (::bind(fd.get(), name, sizeof address) != 0) return syscall_error("bind", path_);
  // Nobody can connect before listen().
  if (::chmod(path_.c_str(), 0600) != 0) return syscall_error("chmod", path_);
  if (::listen(fd.get(), 4) != 0) return syscall_error("listen", path_);
  listener_ = std::move(fd);
  return {};
}

void ControlSocket::run() {
  for (;;) {
    std::array<pollfd, 2> waiting{{{listener_.get(), POLLIN, 0}, {stop_event_.get(), POLLIN, 0}}};
    if (::poll(waiting.data(), waiting.size(), -1) < 0) continue;
    if (waiting[1].revents != 0) return;
    UniqueFd client(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (client.valid() && may_ask(client.get())) serve(std::move(client));
  }
}

void ControlSocket::serve(UniqueFd client) {
  UniqueFd reading(::dup(client.get()));
  if (!reading.valid()) return;
  const timeval send_bound{.tv_sec = kClientSeconds.count(), .tv_usec = 0};
  ::setsockopt(client.get(), SOL_SOCKET, SO_SNDTIMEO, &send_bound, sizeof send_bound);
  MessageChannel channel(std::move(reading), std::move(client));
  const MonotonicClock clock;
  const auto request = channel.receive(Deadline::after(clock, kClientSeconds));
  if (!request || !*request) return;
  const auto reply = handler_(**request);
  // A client that went away before its reply is its own business.
  [[maybe_unused]] const auto sent =
      channel.send(reply ? *reply
                         : nlohmann::json{{"type", "error"},
                                          {"error-class", errc_name(reply.error().code)},
                                          {"error-desc", reply.error().message}});
}

}  // namespace pageferry::demo
