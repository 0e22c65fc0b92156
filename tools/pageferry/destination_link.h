// DestinationLink: the source's view of one destination: an agent process that is spoken to over
// its stdin and stdout (docs/agent-protocol.md). For `--to local` it is this program again, as
// `pageferry agent`.
//
// What the agent says are hints: whether the guest runs there is read from the records on the
// store. An agent that was told to take over goes on when we die.
//
// Thread rule: one thread. Lifetime: the destructor closes the channel and does not wait for the
// agent.
#pragma once

#include <sys/types.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "transport/message_channel.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"

namespace pageferry {

class DestinationLink {
 public:
  // Starts `argv` with a channel as its stdin and stdout; stderr stays ours.
  static Result<std::unique_ptr<DestinationLink>> start(const std::vector<std::string>& argv);

  Result<void> send(const nlohmann::json& message) { return channel_.send(message); }
  // The next message of the agent; nullopt at the deadline. A "failed" message is returned like any
  // other. Errc::gone when the agent ended.
  Result<std::optional<nlohmann::json>> receive(Deadline deadline) {
    return channel_.receive(deadline);
  }
  pid_t pid() const { return pid_; }
  // Waits for the agent to exit, at most until the deadline; false when it still lives.
  bool wait_for_exit(Deadline deadline);

 private:
  DestinationLink(pid_t pid, UniqueFd in, UniqueFd out)
      : pid_(pid), channel_(std::move(in), std::move(out)) {}
  pid_t pid_;
  MessageChannel channel_;
};

// Path of this program's executable, for starting it again.
std::string own_executable();

// The Error in a "failed" message.
Error error_of_message(const nlohmann::json& message);

}  // namespace pageferry
