// RunDirectory: the place on this host for what belongs to one QEMU that we start: its monitor
// sockets, its log, its pid file. <root>/<vm>/<run id>/: the last level is 0700 and belongs to
// QEMU's user, the levels above are 0711, so that this user gets through but sees nothing. The root
// is /run/pageferry for root, $XDG_RUNTIME_DIR/pageferry for others, or what --run-dir says.
//
// Nothing is followed or trusted that somebody else could have put there: each level must be a
// directory of root's or ours that nobody else may write to.
//
// Thread rule: functions without state; one maker per run id (it is random).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "transport/os/error.h"

namespace pageferry {

struct RunDirectoryOwner {
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
};

// The longest run directory whose sockets' names still fit (sun_path is 108 bytes).
inline constexpr std::size_t kRunDirectoryBytesMax = 80;

// The default root for this process: `runtime_dir_of_user` is the value of XDG_RUNTIME_DIR, which
// root ignores. invalid for a user without one (name --run-dir).
Result<std::string> default_run_root(std::uint32_t our_uid, const std::string& runtime_dir_of_user);

// Makes <root>/<vm>/<run id>/ and returns its path. `vm` and `run_id`: 1 to 64 letters, digits,
// '.', '_', '-', no leading dot. Errors: invalid (names, length, somebody else's directory), exists
// (the run id), io.
Result<std::string> make_run_directory(const std::string& root, const std::string& vm,
                                       const std::string& run_id, const RunDirectoryOwner& owner);

// A small file in a run directory: whole or not there, whatever kills the writer (written beside its name, then renamed; not synced,
// since it is worth nothing after the host's death). An older one is replaced. Errors: io, no_space, not_found (the directory).
Result<void> write_run_file(const std::string& directory, const std::string& name,
                            std::string_view text);
// Errors: not_found, invalid (no regular file, of another user than root or us, longer than `bytes_max`), io.
Result<std::string> read_run_file(const std::string& directory, const std::string& name,
                                  std::size_t bytes_max);
// Success when it is gone already.
Result<void> remove_run_file(const std::string& directory, const std::string& name);

// Removes a run directory that make_run_directory made, with its sockets, FIFOs and files (not
// sub-directories), and the directory of the VM if nothing is left in it. Success when it is gone
// already. invalid if `path` is not <root>/<vm>/<run id>.
Result<void> remove_run_directory(const std::string& root, const std::string& path);

}  // namespace pageferry
