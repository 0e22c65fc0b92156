// VmLock: keeps two tools on one host apart. A flock on <run-dir>/<name>.lock, held for the tool's
// life, whose content names the holder. It says nothing about other hosts: that is what the
// ownership records are for.
//
// Thread rule: one thread at a time. Lifetime: the lock is held until destruction or the death of
// the process. The file is never removed: removing a locked file would let two hold "the" lock.
// Children do not inherit it (O_CLOEXEC).
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "transport/host_identity.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

// --run-dir if given, else /run/pageferry for root, else $XDG_RUNTIME_DIR/pageferry (passed in:
// libraries do not read the environment). Errc::invalid when there is none.
Result<std::string> choose_run_directory(std::string_view run_dir_option,
                                         std::string_view xdg_runtime_dir);

class VmLock {
 public:
  // Makes the directory (0711) if need be. Errc::busy when another holds it: the message names pid
  // and start time. Errc::invalid when directory or file is a symlink or others may write there.
  static Result<VmLock> acquire(const std::string& run_directory, std::string_view vm_name);

  // For `recover`: ends the holder first, then takes the lock. The holder must be the process that
  // the lock's content names (pid and start time) and run our own executable file, else Errc::busy;
  // it gets SIGTERM, then SIGKILL after `patience`, both by pidfd, and is waited for. Succeeds at
  // once when nobody holds it.
  static Result<VmLock> take_over(const std::string& run_directory, std::string_view vm_name,
                                  const Clock& clock, Milliseconds patience);

  // The living process that the lock's content names; nullopt when there is none. For status.
  static Result<std::optional<ProcessIdentity>> holder(const std::string& run_directory,
                                                       std::string_view vm_name);

  const std::string& path() const { return path_; }

 private:
  VmLock(UniqueFd file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}
  UniqueFd file_;
  std::string path_;
};

}  // namespace pageferry
