// MessageChannel: framed control messages between two pageferry processes: one JSON object a line
// over a pair of file descriptors (a socketpair to a local agent, or the stdin/stdout of a remote
// one). Never page data. What comes in is bounded and checked to be an object with a string "type";
// everything else about it is the caller's to check.
//
// Messages are hints: storage is the truth. A lost channel never changes who owns a guest.
//
// Thread rule: send() from any thread (internally locked); receive() from one thread.
// Lifetime: owns its descriptors.
#pragma once

#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

inline constexpr std::size_t kMessageBytesMax = std::size_t{16} << 20;

class MessageChannel {
 public:
  // `in` and `out` may be the same socket (pass a dup).
  MessageChannel(UniqueFd in, UniqueFd out) : in_(std::move(in)), out_(std::move(out)) {}

  // Writes the whole line. Errors: gone (the peer closed), io, invalid (longer than
  // kMessageBytesMax). Blocks while the peer does not read: messages are few and small.
  Result<void> send(const nlohmann::json& message);

  // The next message; nullopt at the deadline. Errors: gone (end of file), invalid (not a JSON
  // object with a type; the channel is unusable then), io.
  Result<std::optional<nlohmann::json>> receive(Deadline deadline);

  int read_fd() const { return in_.get(); }
  // True when receive() would return a message without reading from the descriptor.
  bool has_buffered_line() const { return buffer_.find('\n') != std::string::npos; }

 private:
  UniqueFd in_;
  UniqueFd out_;
  std::mutex send_mutex_;
  std::string buffer_;
};

}  // namespace pageferry
