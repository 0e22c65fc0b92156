// ServingLock: what a tool holds while all that it still does is bring the missing pages of a guest that runs: <name>.serving.<epoch> in
// place of <name>.source and <name>.destination. Those are free then for a tool that moves the guest on, which the hook lets happen while
// pages are missing; and `recover` still finds, and ends, whoever serves.
//
// Taken by a tool that holds <name>.destination (or took it over), so two never want it at once. A tool that moves on never serves the
// epoch that it leaves, and the epoch that it leaves is released only when no page of it is missing.
//
// The lock file goes with the lock: there is one for each epoch, and who comes second holds the other locks.
//
// Thread rule: one thread. Lifetime: held until destruction or the death of the process.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "transport/ownership_record.h"
#include "transport/vm_lock.h"

namespace pageferry {

class ServingLock {
 public:
  // Errors: those of VmLock::acquire.
  static Result<ServingLock> acquire(const std::string& run_directory, const std::string& vm_name,
                                     Epoch epoch);
  ~ServingLock();
  ServingLock(ServingLock&& other) noexcept
      : lock_(std::move(other.lock_)), path_(std::exchange(other.path_, {})) {}
  ServingLock& operator=(ServingLock&&) = delete;

 private:
  explicit ServingLock(VmLock lock) : lock_(std::move(lock)), path_(lock_.path()) {}
  VmLock lock_;
  std::string path_;  // empty: moved from
};

// The VM's serving locks that have a file, held or not, as VmLock::take_over() wants their names.
std::vector<std::string> serving_lock_names(const std::string& run_directory,
                                            const std::string& vm_name);

// The control socket of who serves.
std::string serving_socket_path(const std::string& run_directory, const std::string& vm_name,
                                Epoch epoch);
// Those that are there.
std::vector<std::string> serving_socket_paths(const std::string& run_directory,
                                              const std::string& vm_name);

}  // namespace pageferry
