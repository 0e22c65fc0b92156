// The exit code says where the guest is. Never CLI11's own codes.
#pragma once

#include <cstdint>
#include <string_view>

namespace pageferry {

enum class ExitCode : std::uint8_t {
  done = 0,         // it runs at the destination (send: released; receive: runs here)
  failed = 1,       // it runs on the source as before
  usage = 2,        // the command line is wrong; nothing was touched
  refused = 3,      // refused before anything was touched
  aborted = 4,      // it runs on the source
  lost_claim = 5,   // another candidate won, it runs elsewhere
  timed_out = 6,    // it runs on the source
  recoverable = 7,  // it runs nowhere, the image is intact
  state_lost = 8,   // its state is lost
};

constexpr std::string_view exit_code_meaning(ExitCode code) {
  switch (code) {
    case ExitCode::done:
      return "done";
    case ExitCode::failed:
      return "failed; the guest runs on the source as before";
    case ExitCode::usage:
      return "usage";
    case ExitCode::refused:
      return "refused; nothing was touched";
    case ExitCode::aborted:
      return "aborted; the guest runs on the source";
    case ExitCode::lost_claim:
      return "another candidate won; the guest runs elsewhere";
    case ExitCode::timed_out:
      return "timeout; the guest runs on the source";
    case ExitCode::recoverable:
      return "the guest runs nowhere; its state is intact and recoverable";
    case ExitCode::state_lost:
      return "the guest's state is lost";
  }
  return "";
}

}  // namespace pageferry
