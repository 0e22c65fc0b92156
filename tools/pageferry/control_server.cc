// A poll loop over three descriptors: listener, signalfd, stop event. A client has kClientSeconds
// to say its line.
#include "tools/pageferry/control_server.h"

#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "transport/message_channel.h"
#include "transport/os/clock.h"

namespace pageferry {
namespace {

constexpr Seconds kClientSeconds{2};
constexpr Seconds kReplySeconds{10};

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return fail(Errc::invalid, fmt::format("socket path '{}' has {} bytes, limit {}", path,
                                           path.size(), sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

bool may_ask(int fd) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
  return peer.uid == 0 || peer.uid == ::geteuid();
}

Result<UniqueFd> listen_at(const std::string& path) {
  PF_ASSIGN(const sockaddr_un address, address_of(path));
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return syscall_error("socket", path);
  ::unlink(path.c_str());
  const mode_t old_mask = ::umask(0177);
  const int bound = ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  const int bind_errno = errno;
  ::umask(old_mask);
  if (bound != 0) return syscall_error("bind", path, bind_errno);
  if (::listen(fd.get(), 4) != 0) return syscall_error("listen", path);
  return fd;
}

}  // namespace

Result<std::unique_ptr<ControlServer>> ControlServer::start(std::string socket_path,
                                                            AbortHandler on_abort) {
  std::unique_ptr<ControlServer> server(
      new ControlServer(std::move(socket_path), std::move(on_abort)));
  PF_ASSIGN(server->listener_, listen_at(server->path_));
  const sigset_t set = stop_signals();
  if (const int error = ::pthread_sigmask(SIG_BLOCK, &set, nullptr); error != 0) {
    return syscall_error("pthread_sigmask", "SIGINT", error);
  }
  server->signals_ = UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!server->signals_.valid()) return syscall_error("signalfd", "SIGINT");
  server->stop_event_ = UniqueFd(::eventfd(0, EFD_CLOEXEC));
  if (!server->stop_event_.valid()) return syscall_error("eventfd", "control server");
  server->thread_ = std::thread([self = server.get()] { self->run(); });
  return server;
}

ControlServer::~ControlServer() {
  if (thread_.joinable()) {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(stop_event_.get(), &one, sizeof one);
    thread_.join();
  }
  if (listener_.valid()) ::unlink(path_.c_str());
}

void ControlServer::set_status(nlohmann::json status) {
  const std::lock_guard lock(mutex_);
  status_ = std::move(status);
}

void ControlServer::run() {
  while (true) {
    std::array<pollfd, 3> waiting{{{listener_.get(), POLLIN, 0},
                                   {signals_.get(), POLLIN, 0},
                                   {stop_event_.get(), POLLIN, 0}}};
    if (::poll(waiting.data(), waiting.size(), -1) < 0) continue;
    if (waiting[2].revents != 0) return;
    if (waiting[1].revents != 0) take_signal();
    if (waiting[0].revents != 0) serve_one();
  }
}

void ControlServer::take_signal() {
  signalfd_siginfo info{};
  if (::read(signals_.get(), &info, sizeof info) != sizeof info) return;
  auto outcome = on_abort_();
  fmt::print(stderr, "pageferry: {}: {}\n", info.ssi_signo == SIGINT ? "interrupted" : "terminated",
             outcome ? *outcome : outcome.error().message);
}

void ControlServer::serve_one() {
  UniqueFd client(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!client.valid() || !may_ask(client.get())) return;
  UniqueFd reading(::dup(client.get()));
  if (!reading.valid()) return;
  const timeval send_bound{.tv_sec = kClientSeconds.count(), .tv_usec = 0};
  ::setsockopt(client.get(), SOL_SOCKET, SO_SNDTIMEO, &send_bound, sizeof send_bound);
  MessageChannel channel(std::move(reading), std::move(client));
  const MonotonicClock clock;
  auto request = channel.receive(Deadline::after(clock, kClientSeconds));
  if (!request || !*request) return;
  // A client that went away before its reply is its own business.
  [[maybe_unused]] const auto sent = channel.send(reply_to(**request));
}

nlohmann::json ControlServer::reply_to(const nlohmann::json& request) {
  const std::string type = request["type"];
  if (type == "status") {
    const std::lock_guard lock(mutex_);
    return {{"type", "status"}, {"status", status_}};
  }
  if (type == "abort") {
    auto outcome = on_abort_();
    if (outcome) return {{"type", "ok"}, {"message", *outcome}};
    return {{"type", "error"},
            {"error-class", errc_name(outcome.error().code)},
            {"error-desc", outcome.error().message}};
  }
  return {{"type", "error"},
          {"error-class", "invalid"},
          {"error-desc", fmt::format("unknown control request '{}'", type)}};
}

Result<nlohmann::json> ask_control_server(const std::string& socket_path,
                                          const nlohmann::json& request) {
  PF_ASSIGN(const sockaddr_un address, address_of(socket_path));
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return syscall_error("socket", socket_path);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return syscall_error("connect", socket_path);
  }
  UniqueFd reading(::dup(fd.get()));
  if (!reading.valid()) return syscall_error("dup", socket_path);
  MessageChannel channel(std::move(reading), std::move(fd));
  PF_TRY(channel.send(request));
  const MonotonicClock clock;
  PF_ASSIGN(auto reply, channel.receive(Deadline::after(clock, kReplySeconds)));
  if (!reply) return fail(Errc::timeout, fmt::format("no answer from {}", socket_path));
  return std::move(*reply);
}

}  // namespace pageferry
