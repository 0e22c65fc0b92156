// VmDirectory: <store>/<name>/, a VM's place on the store: its ownership records, and one
// sub-directory per attempt with page file, device state and manifest. Everything is reached
// through descriptors; no symlink is followed, ever.
//
// Thread rule: one thread at a time. Lifetime: owns its descriptors; what it hands out lives on its
// own.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "transport/ownership_log.h"
#include "transport/ownership_record.h"

namespace pageferry {

inline constexpr std::size_t kVmNameBytesMax = 128;

// 1..128 bytes of [A-Za-z0-9._-], the first a letter or digit. Errc::invalid otherwise.
Result<void> validate_vm_name(std::string_view name);

// "attempt.<epoch>.<32 hex digits>": epoch = the one whose owner made it.
std::string attempt_name(Epoch epoch, const RandomId& id);
struct AttemptName {
  Epoch epoch{0};
  RandomId id;
};
std::optional<AttemptName> parse_attempt_name(std::string_view name);

struct Attempt {
  std::string name;
  UniqueFd directory;  // O_RDONLY | O_DIRECTORY
};

inline constexpr Seconds kOpenFileBound{3};  // of remove_attempt

class VmDirectory {
 public:
  enum class IfMissing { create, refuse };

  // `store` must be an existing directory and no symlink; the VM's directory is made 0700 (and made
  // durable), or must be a directory that only its owner, we, can enter. Errors: not_found, invalid
  // (with the reason), no_space, io.
  static Result<VmDirectory> open(const std::string& store, std::string_view vm_name,
                                  IfMissing if_missing);

  // The records, over descriptors of their own.
  Result<OwnershipLog> open_log() const;

  // A new, empty attempt directory (0700), durable.
  Result<Attempt> create_attempt(Epoch epoch) const;
  // Errc::invalid when the name is not of our form, not_found, invalid when it is a symlink.
  Result<Attempt> open_attempt(std::string_view name) const;
  // Names of our form, in order of epoch.
  Result<std::vector<std::string>> list_attempts() const;
  // Removes the attempt's files and the directory. Refuses (invalid) other names, symlinks, and a
  // directory that holds a sub-directory. An attempt that is not there is success: gc may be
  // repeated. An NFS client keeps a removed file under another name (.nfs...) while a process of
  // this host has it open: that is waited for, kOpenFileBound at most, then busy, naming it.
  Result<void> remove_attempt(std::string_view name) const;

  const std::string& path() const { return path_; }
  int fd() const { return directory_.get(); }

 private:
  VmDirectory(UniqueFd directory, std::string path)
      : directory_(std::move(directory)), path_(std::move(path)) {}
  UniqueFd directory_;
  std::string path_;
};

}  // namespace pageferry
