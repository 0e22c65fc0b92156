// A poll loop over two descriptors. A client that says nothing is left after kClientSeconds.
#include "tools/demo_vmm/control_socket.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>

#include "transport/message_channel.h"
#include "transport/os/signals_blocked.h"
#include "vmstate/local_socket.h"

namespace pageferry::demo {
namespace {

constexpr Seconds kClientSeconds{2};

}  // namespace

Result<std::unique_ptr<ControlSocket>> ControlSocket::start(const std::string& path,
                                                            Handler handler) {
  std::unique_ptr<ControlSocket> control(new ControlSocket(path, std::move(handler)));
  PF_ASSIGN(control->listener_, listen_at(path, SOCK_STREAM, 4));
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

void ControlSocket::run() {
  for (;;) {
    std::array<pollfd, 2> waiting{{{listener_.get(), POLLIN, 0}, {stop_event_.get(), POLLIN, 0}}};
    if (::poll(waiting.data(), waiting.size(), -1) < 0) continue;
    if (waiting[1].revents != 0) return;
    UniqueFd client(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (client.valid() && check_peer(client.get(), "control")) serve(std::move(client));
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
