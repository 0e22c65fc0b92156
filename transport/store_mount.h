// How the store is mounted, and which of its mount options break what the hand-off relies on.
//
// Thread rule: find_mount reads /proc/self/mountinfo each time; judge_mount is pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "transport/os/error.h"

namespace pageferry {

struct StoreMount {
  std::string point;    // where it is mounted
  std::string source;   // device, or server:/export
  std::string fs_type;  // "ext4", "nfs4", ...
  std::string options;  // of the mount and the file system, comma separated
};

enum class StoreSeverity : std::uint8_t {
  note,     // good to know
  warning,  // works, but something is at risk
  refusal,  // must not be used
};

struct StoreFinding {
  StoreSeverity severity = StoreSeverity::note;
  std::string message;  // one line
};

// The mount that the open directory lies on. Errc::io, Errc::not_found.
Result<StoreMount> find_mount(int directory_fd);

std::vector<StoreFinding> judge_mount(const StoreMount& mount);

}  // namespace pageferry
