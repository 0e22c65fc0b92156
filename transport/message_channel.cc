// Lines in and out. SIGPIPE is avoided with MSG_NOSIGNAL where the descriptor is a socket; a
// process that uses pipes ignores the signal (tools/pageferry/main.cc does).
#include "transport/message_channel.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace pageferry {
namespace {

ssize_t write_some(int fd, std::string_view bytes) {
  ssize_t written = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  if (written < 0 && errno == ENOTSOCK) written = ::write(fd, bytes.data(), bytes.size());
  return written;
}

Result<std::optional<nlohmann::json>> parse_message(std::string_view line) {
  nlohmann::json message = nlohmann::json::parse(line, nullptr, false);
  if (message.is_discarded() || !message.is_object() || !message.contains("type") ||
      !message["type"].is_string()) {
    return fail(Errc::invalid,
                fmt::format("peer message of {} bytes is no JSON object with a type", line.size()));
  }
  return std::optional<nlohmann::json>(std::move(message));
}

}  // namespace

Result<void> MessageChannel::send(const nlohmann::json& message) {
  const std::string line =
      message.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  if (line.size() > kMessageBytesMax) {
    return fail(Errc::invalid,
                fmt::format("message of {} bytes, limit {}", line.size(), kMessageBytesMax));
  }
  const std::lock_guard lock(send_mutex_);
  std::string_view rest = line;
  while (!rest.empty()) {
    const ssize_t written = write_some(out_.get(), rest);
    if (written < 0) {
      if (errno == EINTR) continue;
      return syscall_error("write", "agent channel");
    }
    rest.remove_prefix(static_cast<std::size_t>(written));
  }
  return {};
}

Result<std::optional<nlohmann::json>> MessageChannel::receive(Deadline deadline) {
  while (true) {
    const auto end = buffer_.find('\n');
    if (end != std::string::npos) {
      auto message = parse_message(std::string_view(buffer_).substr(0, end));
      buffer_.erase(0, end + 1);
      return message;
    }
    if (buffer_.size() >= kMessageBytesMax) {
      return fail(Errc::invalid, fmt::format("peer line longer than {} bytes", kMessageBytesMax));
    }
    pollfd waiting{.fd = in_.get(), .events = POLLIN, .revents = 0};
    const int ready = ::poll(&waiting, 1, deadline.poll_timeout_ms());
    if (ready < 0 && errno != EINTR) return syscall_error("poll", "agent channel");
    if (ready < 0) continue;
    if (ready == 0) {
      if (deadline.passed()) return std::optional<nlohmann::json>();
      continue;
    }
    std::array<char, 65536> chunk;
    const ssize_t got = ::read(in_.get(), chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return syscall_error("read", "agent channel");
    if (got == 0) return fail(Errc::gone, "the agent closed its channel");
    buffer_.append(chunk.data(), static_cast<std::size_t>(got));
  }
}

}  // namespace pageferry
