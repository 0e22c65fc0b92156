// QemuOutOfBand: a monitor connection that outlives the pager and takes commands while QEMU's global lock is held by a thread that waits
// for a page. QEMU runs commands that are sent out-of-band (docs/interop/qmp-spec, "exec-oob") in a thread that needs no lock, but only on
// a connection that negotiated this before, which takes the lock. So it is made while all is well, and kept where it lives as long as it
// is of use: in QEMU, which is given our end of it by `getfd`.
//
//   prepare:  we --connect, qmp_capabilities oob--> monitor     we --getfd(our end)--> QEMU, which now holds both ends
//   recover:  pidfd_getfd(our end) --> "exec-oob": migrate-recover
//   finish:   closefd
//
// Each pager takes a duplicate, QEMU's own stays for the next. What an earlier one was killed before reading is skipped. Only
// `migrate-pause`, `migrate-recover` and a few more commands may be sent so (`query-migrate` may not).
//
// Thread rule: one thread. Lifetime: owns its descriptor; the QmpClient is used during the call only.
#pragma once

#include <cstdint>
#include <string>

#include "transport/host_identity.h"
#include "transport/os/fd.h"
#include "vmstate/qmp_client.h"
#include "vmstate/qmp_commands.h"

namespace pageferry {

class QemuOutOfBand final : public QmpCommands {
 public:
  // Makes the connection to the monitor at `socket_path` and leaves it in that QEMU. Returns the inode of our end, by which it is found
  // again. Errors: vmm (that monitor has no out-of-band commands), busy, timeout, gone, not_found.
  static Result<std::uint64_t> leave(QmpClient& qmp, const std::string& socket_path,
                                     Deadline deadline);
  // Out of that process. Errors: gone (it has ended), not_found (it has no such socket), unsupported (we may not trace it).
  static Result<QemuOutOfBand> take(const ProcessIdentity& process, std::uint64_t inode);
  // Removes what leave() left, success when there is nothing. By the monitor by which it was given.
  static Result<void> remove(QmpClient& qmp, Deadline deadline);

  // Sent out-of-band, whatever it is.
  Result<nlohmann::json> execute(std::string_view command, nlohmann::json arguments,
                                 Deadline deadline) override;

 private:
  explicit QemuOutOfBand(UniqueFd fd) : fd_(std::move(fd)) {}
  Result<void> send(const nlohmann::json& request, Deadline deadline);
  Result<nlohmann::json> next_object(Deadline deadline);
  Result<void> negotiate(Deadline deadline);

  UniqueFd fd_;
  std::string pending_;  // read, no whole line yet
};

}  // namespace pageferry
