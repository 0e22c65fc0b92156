// Who connects is nobody until hello, and has kHelloPatience for it. There are kConnectionsMax places; when all are taken, whoever has been
// nobody for longest goes. So neither silence nor a flood keeps the real pager out; it tries again if it was the one to go.
//
// Nothing is read from a connection that waits for an answer. So one connection has one request under way, and what it sends too early
// is its own to keep.
#include "tools/vmm_hook/hook_server.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <system_error>

#include "transport/os/signals_blocked.h"
#include "vmstate/local_socket.h"

namespace pageferry {
namespace {

constexpr std::size_t kConnectionsMax = 64;
constexpr int kBacklog = 128;
constexpr Seconds kHelloPatience{5};

}  // namespace

Result<std::unique_ptr<HookServer>> HookServer::start(HookWork& work) {
  std::unique_ptr<HookServer> server(new HookServer(work));
  server->publish();
  const HookConfig& config = work.config();
  if (!config.pager_command.empty()) {
    server->watchdog_.emplace(config.pager_command, config.socket_path);
  }
  PF_ASSIGN(server->worker_, HookWorker::start());
  PF_ASSIGN(server->listener_, listen_at(config.socket_path, SOCK_SEQPACKET, kBacklog));
  const SignalsBlocked none_for_the_thread;
  try {
    server->thread_ = std::thread([self = server.get()] { self->run(); });
  } catch (const std::system_error& error) {
    return fail(Errc::no_space, fmt::format("no thread for the hook: {}", error.what()));
  }
  return server;
}

HookServer::~HookServer() {
  if (thread_.joinable()) static_cast<void>(stop());
  if (listener_.valid()) ::unlink(work_.config().socket_path.c_str());
}

Result<void> HookServer::stop() {
  stop_.cancel();
  thread_.join();
  ::unlink(work_.config().socket_path.c_str());
  listener_.reset();
  return stopped_;
}

void HookServer::run() {
  while (!stop_.canceled()) {
    try {
      wait();
      check_limit();
      drop_silent();
      give_next_turn();
    } catch (const std::exception&) {
      drop_all();  // no memory for an answer: nobody may wait for it for ever
    }
    publish();
  }
  drop_all();
  // What is under way comes to its end; then a guest that is left paused is resumed.
  while (turn_ || care_ || (stopped_ && take_care())) {
    pollfd entry{.fd = worker_->fd(), .events = POLLIN, .revents = 0};
    ::poll(&entry, 1, -1);
    if (auto outcome = worker_->take()) finish(std::move(*outcome));
  }
  publish();
}

// Until the next thing that is due by the clock.
int HookServer::wait_ms() const {
  std::optional<Nanoseconds> until;
  const auto earlier = [&until](Nanoseconds at) { until = until ? std::min(*until, at) : at; };
  if (limit_at_ && guest_.place() == GuestState::Place::paused) earlier(*limit_at_);
  if (resume_at_) earlier(*resume_at_);
  if (watchdog_ && watchdog_->due_at()) earlier(*watchdog_->due_at());
  for (const auto& [id, connection] : connections_) {
    if (!connection.role) earlier(connection.hello_until);
  }
  if (!until) return -1;
  const Nanoseconds left = std::max(*until - clock_.now(), Nanoseconds::zero());
  return static_cast<int>(std::min<std::int64_t>(std::chrono::ceil<Milliseconds>(left).count(),
                                                 Milliseconds(Seconds(60)).count()));
}

void HookServer::wait() {
  std::vector<pollfd> entries = {{.fd = stop_.fd(), .events = POLLIN, .revents = 0},
                                 {.fd = worker_->fd(), .events = POLLIN, .revents = 0},
                                 {.fd = listener_.get(), .events = POLLIN, .revents = 0}};
  std::vector<ConnectionId> ids;
  for (const auto& [id, connection] : connections_) {
    const int events = connection.waits ? POLLRDHUP : POLLRDHUP | POLLIN;
    entries.push_back(
        {.fd = connection.fd.get(), .events = static_cast<short>(events), .revents = 0});
    ids.push_back(id);
  }
  if (::poll(entries.data(), entries.size(), wait_ms()) < 0) return;
  check_limit();
  if (auto outcome = worker_->take()) finish(std::move(*outcome));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const short seen = entries[i + 3].revents;
    const auto found = connections_.find(ids[i]);
    if (seen == 0 || found == connections_.end()) continue;
    // A request that came before the end counts, unless one is under way.
    if ((seen & POLLIN) != 0 && !found->second.waits) {
      read_from(ids[i]);
    } else if ((seen & (POLLHUP | POLLRDHUP | POLLERR)) != 0) {
      drop(ids[i]);
    }
  }
  if (entries[2].revents != 0) accept_all();
}

void HookServer::accept_all() {
  for (std::size_t i = 0; i < kConnectionsMax; ++i) {
    UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) return;
    auto peer = check_peer(fd.get(), "the pager");
    if (!peer) {
      static_cast<void>(
          send_hook_packet(fd.get(), hook_protocol::encode_error(0, peer.error()), -1));
      continue;
    }
    if (connections_.size() >= kConnectionsMax) {
      const auto nobody = std::ranges::find_if(
          connections_, [](const auto& entry) { return !entry.second.role.has_value(); });
      if (nobody == connections_.end()) continue;
      drop(nobody->first);
    }
    Connection connection;
    connection.fd = std::move(fd);
    connection.pid = peer->pid;
    connection.hello_until = clock_.now() + kHelloPatience;
    connections_.emplace(next_id_++, std::move(connection));
  }
}

void HookServer::drop_silent() {
  std::vector<ConnectionId> silent;
  for (const auto& [id, connection] : connections_) {
    if (!connection.role && clock_.now() >= connection.hello_until) silent.push_back(id);
  }
  for (const ConnectionId id : silent) drop(id);
  if (watchdog_) watchdog_->look(clock_.now(), work_.incoming());
}

void HookServer::read_from(ConnectionId id) {
  auto packet = receive_hook_packet(connections_.at(id).fd.get());
  if (packet) {
    try {
      serve(id, std::move(*packet));
    } catch (const std::exception&) {
      drop(id);
    }
    return;
  }
  if (packet.error().code == Errc::timeout) return;
  if (packet.error().code == Errc::invalid) refuse(id, 0, packet.error());
  drop(id);
}

// Whoever it was: its requests are nobody's now. A guest that it left paused is resumed in give_next_turn().
void HookServer::drop(ConnectionId id) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  const std::optional<HookRole> role = found->second.role;
  connections_.erase(found);
  std::erase_if(waiting_, [id](const Turn& turn) { return turn.from == id; });
  if (turn_ && turn_->from == id) turn_->from.reset();
  if (role == HookRole::mover) {
    guest_.mover_left();
    mover_is_gone_ = true;
    limit_at_.reset();
  }
  if (role == HookRole::restorer && watchdog_) watchdog_->restorer_left(clock_.now());
}

void HookServer::drop_all() {
  while (!connections_.empty()) drop(connections_.begin()->first);
}

void HookServer::answer(ConnectionId id, std::span<const std::byte> packet, int descriptor) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  found->second.waits = false;
  // It does not read its answers, or has just gone.
  if (!send_hook_packet(found->second.fd.get(), packet, descriptor)) drop(id);
}

void HookServer::refuse(ConnectionId id, std::uint32_t serial, const Error& error) {
  answer(id, hook_protocol::encode_error(serial, error));
}

std::optional<HookServer::ConnectionId> HookServer::holder_of(HookRole role) const {
  const auto found = std::ranges::find_if(
      connections_, [role](const auto& entry) { return entry.second.role == role; });
  if (found == connections_.end()) return std::nullopt;
  return found->first;
}

}  // namespace pageferry
