// FakeQmpServer: a QMP monitor on a unix socket, with behaviour given by the test: what it greets
// with, and a handler that answers each command. Like QEMU it serves one client at a time, the next
// one gets its greeting when the first has gone.
//
// Thread rule: the handler runs on the server's thread; send_raw and send_event may be called from
// any thread, also from it. Lifetime: what the handler refers to outlives the server.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "transport/os/fd.h"

namespace pageferry::testing_support {

inline nlohmann::json qmp_return(nlohmann::json value = nlohmann::json::object()) {
  return {{"return", std::move(value)}};
}
inline nlohmann::json qmp_error(const std::string& text) {
  return {{"error", {{"class", "GenericError"}, {"desc", text}}}};
}

class FakeQmpServer {
 public:
  struct Command {
    std::string name;
    nlohmann::json arguments = nlohmann::json::object();
    std::vector<UniqueFd> fds;
  };
  // Returns the reply without its id, or nullopt for none.
  using Handler = std::function<std::optional<nlohmann::json>(Command&)>;

  static std::string qemu_greeting() {
    return R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, )"
           R"("capabilities": ["oob"]}})"
           "\r\n";
  }

  FakeQmpServer(const std::string& path, Handler handler, std::string greeting = qemu_greeting())
      : handler_(std::move(handler)), greeting_(std::move(greeting)) {
    listener_ = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    if (::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
        ::listen(listener_.get(), 1) != 0) {
      ADD_FAILURE() << "cannot listen on " << path << ": " << std::strerror(errno);
      return;
    }
    thread_ = std::thread([this] { serve(); });
  }

  ~FakeQmpServer() {
    stopping_ = true;
    ::shutdown(listener_.get(), SHUT_RDWR);
    close_client();
    if (thread_.joinable()) thread_.join();
  }
  FakeQmpServer(const FakeQmpServer&) = delete;
  FakeQmpServer& operator=(const FakeQmpServer&) = delete;

  // Ends the connection of the present client, as a dying QEMU does.
  void close_client() {
    const std::lock_guard lock(mutex_);
    if (client_.valid()) ::shutdown(client_.get(), SHUT_RDWR);
  }

  void send_raw(std::string_view bytes) {
    const std::lock_guard lock(mutex_);
    while (!bytes.empty() && client_.valid()) {
      const ssize_t sent = ::send(client_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
  }

  void send_event(const std::string& name, nlohmann::json data = nlohmann::json::object()) {
    const nlohmann::json event = {{"event", name},
                                  {"data", std::move(data)},
                                  {"timestamp", {{"seconds", 1}, {"microseconds", 2}}}};
    send_raw(event.dump() + "\r\n");
  }

 private:
  void serve() {
    while (!stopping_) {
      UniqueFd accepted(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!accepted.valid()) return;
      {
        const std::lock_guard lock(mutex_);
        client_ = std::move(accepted);
      }
      if (stopping_) return;
      send_raw(greeting_);
      serve_client();
      const std::lock_guard lock(mutex_);
      client_.reset();
    }
  }

  void serve_client() {
    std::string pending;
    std::vector<UniqueFd> fds;
    while (receive(pending, fds)) {
      for (auto newline = pending.find('\n'); newline != std::string::npos;
           newline = pending.find('\n')) {
        const auto request = nlohmann::json::parse(pending.substr(0, newline));
        pending.erase(0, newline + 1);
        answer(request, fds);
      }
    }
  }

  void answer(const nlohmann::json& request, std::vector<UniqueFd>& fds) {
    Command command{.name = request.at("execute").get<std::string>(),
                    .arguments = request.value("arguments", nlohmann::json::object()),
                    .fds = std::exchange(fds, {})};
    auto reply = command.name == "qmp_capabilities" ? qmp_return() : handler_(command);
    if (!reply) return;
    if (request.contains("id") && !reply->contains("id")) (*reply)["id"] = request["id"];
    send_raw(reply->dump() + "\r\n");
  }

  bool receive(std::string& pending, std::vector<UniqueFd>& fds) {
    std::array<char, 4096> chunk{};
    alignas(cmsghdr) std::array<char, 256> control{};
    iovec piece{.iov_base = chunk.data(), .iov_len = chunk.size()};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t got = ::recvmsg(client_.get(), &message, MSG_CMSG_CLOEXEC);
    if (got <= 0) return false;
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
      fds.emplace_back(fd);
    }
    pending.append(chunk.data(), static_cast<std::size_t>(got));
    return true;
  }

  const Handler handler_;
  const std::string greeting_;
  UniqueFd listener_;
  std::atomic<bool> stopping_ = false;
  std::mutex
      mutex_;  // guards client_ and keeps lines whole; serve() alone reads client_ without it
  UniqueFd client_;
  std::thread thread_;
};

}  // namespace pageferry::testing_support
