// The monitor connection: a reader thread turns the byte stream into JSON lines and sorts them into
// "the reply" and "events"; callers wait for one of the two on a condition variable.
//
// Why a thread: QEMU sends events whether or not somebody asks, and the event history must be
// complete for the rule that only a tool with an unbroken event stream may name an image. Were
// events read only inside execute() and wait_event(), a client that is busy elsewhere would let
// QEMU's output buffer fill. A poll loop shared by several callers was the alternative; it needs a
// leader hand-over between threads, which is harder to get right than one reader.
//
// Invariants:
//   I1  at most one command is outstanding; a reply that carries another id, or comes unasked, ends
//   the connection I2  a connection that ended stays ended: the first reason is kept, and no later
//   line is looked at I3  memory is bounded: one line by kLineBytesMax, the queue by kEventsMax;
//   passing either ends the connection I4  the socket is closed only in the destructor, after the
//   reader was joined; to end a connection it is shut down
#include "vmstate/qmp_client.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "transport/os/fd.h"
#include "transport/os/signals_blocked.h"
#include "vmstate/monitor_socket.h"

namespace pageferry {
namespace {

using nlohmann::json;

constexpr std::size_t kLineBytesMax =
    std::size_t{32} << 20;  // query-named-block-nodes of a very large VM is about 1 MiB
constexpr std::size_t kEventsMax = 65536;
constexpr std::size_t kMonitorReadBytes = std::size_t{64} << 10;

// major * 10000 + minor * 100 + micro, or nullopt where the greeting is not QEMU's.
std::optional<int> version_in_greeting(const json& greeting) {
  const auto qmp = greeting.find("QMP");
  if (qmp == greeting.end() || !qmp->is_object()) return std::nullopt;
  const auto version = qmp->find("version");
  if (version == qmp->end() || !version->is_object()) return std::nullopt;
  const auto qemu = version->find("qemu");
  if (qemu == version->end() || !qemu->is_object()) return std::nullopt;
  int number = 0;
  for (const char* part : {"major", "minor", "micro"}) {
    const auto value = qemu->find(part);
    if (value == qemu->end() || !value->is_number_integer()) return std::nullopt;
    const auto digits = value->get<std::int64_t>();
    if (digits < 0 || digits > 9999) return std::nullopt;
    number = number * 100 + static_cast<int>(std::min<std::int64_t>(digits, 99));
  }
  return number;
}

// What QEMU said in an "error" object, as an Error.
Error error_of_reply(std::string_view command, const json& error) {
  const auto text = [&error](const char* key) -> std::string {
    const auto value = error.find(key);
    return value != error.end() && value->is_string() ? value->get<std::string>() : "?";
  };
  if (!error.is_object()) {
    return fail(Errc::vmm, fmt::format("QMP {}: {}", command, printable(error.dump()))).value();
  }
  return fail(Errc::vmm, fmt::format("QMP {}: {}: {}", command, text("class"), text("desc")))
      .value();
}

class SocketQmpClient final : public QmpClient {
 public:
  SocketQmpClient(UniqueFd fd, std::string path, Peer peer)
      : fd_(std::move(fd)), path_(std::move(path)), peer_(peer) {
    const SignalsBlocked for_the_reader;
    reader_ = std::thread([this] { read_until_end(); });
  }

  ~SocketQmpClient() override {
    end(fail(Errc::gone, fmt::format("QMP connection {} was closed by us", path_)).value());
    reader_.join();
  }

  SocketQmpClient(const SocketQmpClient&) = delete;
  SocketQmpClient& operator=(const SocketQmpClient&) = delete;

  // Waits for the greeting, then leaves negotiation mode.
  Result<void> negotiate(Deadline deadline) {
    {
      std::unique_lock lock(mutex_);
      if (!wait(lock, deadline, [this] { return greeted_ || ended_; })) {
        return fail(
            Errc::busy,
            fmt::format(
                "QMP monitor {} sends no greeting: another client holds it (QEMU serves one at "
                "a time), QEMU hangs, or it is no QMP monitor",
                path_));
      }
      if (!greeted_) return tl::make_unexpected(*ended_);
    }
    auto reply = execute("qmp_capabilities", json::object(), deadline);
    if (!reply) return with_context(reply.error(), path_);
    return {};
  }

  Result<json> execute(std::string_view command, json arguments, Deadline deadline) override {
    return run(command, std::move(arguments), -1, deadline);
  }

  Result<json> execute_with_fd(std::string_view command, json arguments, int fd,
                               Deadline deadline) override {
    if (fd < 0) {
      return fail(Errc::invalid,
                  fmt::format("QMP {}: descriptor {} cannot be passed", command, fd));
    }
    return run(command, std::move(arguments), fd, deadline);
  }

  Result<std::optional<json>> wait_event(Deadline deadline) override {
    std::unique_lock lock(mutex_);
    wait(lock, deadline, [this] { return !events_.empty() || ended_; });
    if (!events_.empty()) {
      std::optional<json> event(std::move(events_.front()));
      events_.pop_front();
      return event;
    }
    if (ended_) return tl::make_unexpected(*ended_);
    return std::optional<json>();
  }

  bool unbroken() const override {
    const std::lock_guard lock(mutex_);
    return !ended_;
  }
  Peer peer() const override { return peer_; }
  const std::string& socket_path() const override { return path_; }
  int qemu_version() const override {
    const std::lock_guard lock(mutex_);
    return version_;
  }

 private:
  // Waits for `condition` under the lock; false at the deadline.
  template <typename Condition>
  bool wait(std::unique_lock<std::mutex>& lock, const Deadline& deadline, Condition condition) {
    while (!condition()) {
      const int wait_ms = deadline.poll_timeout_ms();
      if (wait_ms == 0) return false;
      if (wait_ms < 0) {
        changed_.wait(lock);
      } else {
        changed_.wait_for(lock, Milliseconds(wait_ms));
      }
    }
    return true;
  }

  Result<json> run(std::string_view command, json arguments, int fd, Deadline deadline) {
    std::uint64_t id = 0;
    {
      std::unique_lock lock(mutex_);
      if (!wait(lock, deadline, [this] { return outstanding_ == 0 || ended_; })) {
        return fail(Errc::busy,
                    fmt::format("QMP {}: not sent, an earlier command on {} has no answer yet",
                                command, path_));
      }
      if (ended_) return not_sent(command);
      id = ++last_id_;
      outstanding_ = id;
      reply_.reset();
    }
    auto line = line_of(command, std::move(arguments), id);
    auto sent = line ? send_all(command, *line, fd, deadline) : tl::make_unexpected(line.error());
    std::unique_lock lock(mutex_);
    if (!sent) {
      finish_command();
      return tl::make_unexpected(sent.error());
    }
    if (!wait(lock, deadline, [this] { return reply_ || ended_; })) {
      finish_command();
      const Error late =
          fail(Errc::timeout,
               fmt::format("QMP {}: no answer from {} in time, its outcome is unknown", command,
                           path_))
              .value();
      end_locked(late);
      return tl::make_unexpected(late);
    }
    if (!reply_) {
      finish_command();
      return with_context(*ended_,
                          fmt::format("QMP {}: no answer, its outcome is unknown", command));
    }
    json reply = std::move(*reply_);
    finish_command();
    lock.unlock();
    if (const auto value = reply.find("return"); value != reply.end()) return std::move(*value);
    return tl::make_unexpected(error_of_reply(command, reply["error"]));
  }

  Unexpected not_sent(std::string_view command) {
    return with_context(*ended_, fmt::format("QMP {}: not sent", command));
  }

  void finish_command() {
    outstanding_ = 0;
    reply_.reset();
    changed_.notify_all();
  }

  Result<std::string> line_of(std::string_view command, json arguments, std::uint64_t id) {
    json request = {{"execute", std::string(command)}, {"id", id}};
    if (!arguments.is_null() && !arguments.empty()) request["arguments"] = std::move(arguments);
    try {
      return request.dump() + "\n";
    } catch (const json::exception& e) {  // text that is not UTF-8
      return fail(Errc::invalid, fmt::format("QMP {}: arguments: {}", command, e.what()));
    }
  }

  Result<void> send_all(std::string_view command, std::string_view bytes, int fd,
                        const Deadline& deadline) {
    while (!bytes.empty()) {
      const ssize_t sent = send_some(fd_.get(), bytes, fd);
      if (sent > 0) {
        bytes.remove_prefix(static_cast<std::size_t>(sent));
        fd = -1;  // travels with the first byte, once
        continue;
      }
      const int error_number = errno;
      if (error_number == EINTR) continue;
      if ((error_number == EAGAIN || error_number == EWOULDBLOCK) &&
          wait_writable(fd_.get(), deadline)) {
        continue;
      }
      Error error = error_number == EAGAIN
                        ? fail(Errc::timeout,
                               fmt::format("QMP {}: {} takes no bytes in time", command, path_))
                              .value()
                        : syscall_error("send", path_, error_number).value();
      end(error);  // half a command may be in the socket: nothing sensible can follow it
      return tl::make_unexpected(std::move(error));
    }
    return {};
  }

  // --- the reader thread ---

  void read_until_end() {
    std::string pending;
    std::vector<char> chunk(kMonitorReadBytes);
    for (;;) {
      const ssize_t got = ::recv(fd_.get(), chunk.data(), chunk.size(), 0);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return end(syscall_error("recv", path_).value());
      if (got == 0)
        return end(fail(Errc::gone, fmt::format("QEMU closed its monitor {}", path_)).value());
      std::size_t searched = pending.size();
      pending.append(chunk.data(), static_cast<std::size_t>(got));
      std::size_t begin = 0;
      for (auto newline = pending.find('\n', searched); newline != std::string::npos;
           newline = pending.find('\n', begin)) {
        if (auto taken = take_line(std::string_view(pending).substr(begin, newline - begin));
            !taken) {
          return end(std::move(taken.error()));
        }
        begin = newline + 1;
      }
      pending.erase(0, begin);
      if (auto bounded = check_unfinished_line(pending); !bounded)
        return end(std::move(bounded.error()));
    }
  }

  Result<void> check_unfinished_line(std::string_view pending) {
    if (pending.size() > kLineBytesMax) {
      return fail(Errc::vmm, fmt::format("monitor {} sent a line of more than {} bytes", path_,
                                         kLineBytesMax));
    }
    // A human monitor prompts without ending the line: do not wait for the rest.
    if (!pending.empty() && pending.front() != '{') return no_qmp_server(pending);
    return {};
  }

  Unexpected no_qmp_server(std::string_view line) {
    return fail(Errc::vmm, fmt::format("what answers at {} is no QMP server: it says \"{}\"", path_,
                                       printable(line)));
  }

  Result<void> take_line(std::string_view line) {
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.size() > kLineBytesMax) return check_unfinished_line(line);
    json message = json::parse(line, nullptr, /*allow_exceptions=*/false);
    const std::lock_guard lock(mutex_);
    if (!message.is_object()) {
      if (!greeted_) return no_qmp_server(line);
      return fail(Errc::vmm, fmt::format("monitor {} sent \"{}\", which is no JSON object", path_,
                                         printable(line)));
    }
    if (!greeted_) {
      // QEMU may say what happens between its accept() and its greeting. From the greeting until the capabilities are
      // negotiated it keeps such things to itself, so nobody may count on this one.
      if (message.contains("event")) return {};
      return take_greeting(message, line);
    }
    if (message.contains("event")) return take_event(std::move(message));
    return take_reply(std::move(message), line);
  }

  Result<void> take_greeting(const json& message, std::string_view line) {
    const auto version = version_in_greeting(message);
    if (!version) return no_qmp_server(line);
    version_ = *version;
    greeted_ = true;
    changed_.notify_all();
    return {};
  }

  Result<void> take_event(json message) {
    if (!message["event"].is_string()) {
      return fail(Errc::vmm, fmt::format("monitor {} sent an event without a name", path_));
    }
    if (events_.size() >= kEventsMax) {
      return fail(Errc::vmm, fmt::format("{} events of monitor {} were not taken, the limit",
                                         kEventsMax, path_));
    }
    events_.push_back(std::move(message));
    changed_.notify_all();
    return {};
  }

  Result<void> take_reply(json message, std::string_view line) {
    if (!message.contains("return") && !message.contains("error")) {
      return fail(Errc::vmm, fmt::format("monitor {} sent \"{}\", neither reply nor event", path_,
                                         printable(line)));
    }
    // An error about a line that QEMU could not parse carries no id: with one command outstanding
    // it can only mean that.
    const auto id = message.find("id");
    const bool ours = outstanding_ != 0 && !reply_ &&
                      (id == message.end() ? message.contains("error") : *id == json(outstanding_));
    if (!ours) {
      return fail(Errc::vmm, fmt::format("monitor {} sent a reply nobody asked for: \"{}\"", path_,
                                         printable(line)));
    }
    reply_ = std::move(message);
    changed_.notify_all();
    return {};
  }

  void end(Error reason) {
    const std::lock_guard lock(mutex_);
    end_locked(std::move(reason));
  }

  void end_locked(Error reason) {
    if (ended_) return;
    ended_ = std::move(reason);
    ::shutdown(fd_.get(), SHUT_RDWR);  // wakes the reader; the descriptor stays ours (I4)
    changed_.notify_all();
  }

  const UniqueFd fd_;
  const std::string path_;
  const Peer peer_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // guarded by mutex_:
  bool greeted_ = false;
  int version_ = 0;
  std::uint64_t last_id_ = 0;
  std::uint64_t outstanding_ = 0;  // id of the command in flight, 0 = none
  std::optional<json> reply_;
  std::deque<json> events_;
  std::optional<Error> ended_;

  std::thread reader_;
};

}  // namespace

Result<std::unique_ptr<QmpClient>> QmpClient::connect(const std::string& socket_path,
                                                      Deadline deadline) {
  PF_ASSIGN(UniqueFd fd, connect_monitor(socket_path, deadline));
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) {
    return syscall_error("getsockopt SO_PEERCRED", socket_path);
  }
  const Peer peer{.pid = credentials.pid, .uid = credentials.uid, .gid = credentials.gid};
  auto client = std::make_unique<SocketQmpClient>(std::move(fd), socket_path, peer);
  PF_TRY(client->negotiate(deadline));
  return client;
}

}  // namespace pageferry
