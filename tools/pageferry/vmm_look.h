// VmmLook: one look at one VMM process of this host, for the hand-off rules: is it there, and what
// is its guest doing. Finds the monitor of a QEMU that nobody told us about in its own command
// line.
//
// Thread rule: one thread at a time. Lifetime: owns its connection.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tools/pageferry/hook_look.h"
#include "transport/hand_off_rules.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/qmp_client.h"

namespace pageferry {

// A VMM that is looked at or acted on has this long to answer one question.
inline constexpr Seconds kVmmQueryBound{30};

struct VmmLook {
  VmmView view;
  std::unique_ptr<QmpClient> qmp;  // null when the VMM is gone
  std::string migration_status;    // query-migrate's, "" when there is none
  std::optional<HookLook> hook;    // then there is no qmp
  bool waits_for_pages() const {
    return hook ? hook->waits_for_pages() : migration_status.starts_with("postcopy");
  }
  // Of the monitor or the hook; "" when the VMM is gone.
  std::string socket() const { return hook ? hook->socket : qmp ? qmp->socket_path() : ""; }
  // {"pid":, "qmp":} or {"pid":, "hook":}
  nlohmann::json where() const {
    return {{"pid", view.process ? view.process->pid : 0}, {hook ? "hook" : "qmp", socket()}};
  }
};

// Paths of unix sockets that serve QMP, from a QEMU's arguments (-qmp, -qmp-pretty, -mon with a
// chardev), relative ones resolved against its working directory. Not the one for out-of-band commands
// that we put there: QEMU itself is its client. Pure.
std::vector<std::string> monitor_sockets_of(const std::vector<std::string>& argv,
                                            const std::string& working_directory);

// Looks at a process. state none when it is gone. Errors: busy (its monitor is held by another
// client, or does not answer), vmm, and those of /proc. `preferred_socket` may be empty.
Result<VmmLook> look_at_vmm(const ProcessIdentity& process, const std::string& preferred_socket,
                            const Clock& clock);

// The same, of a VMM that was found by its hook.
VmmLook look_of(const HookLook& hook);

// query-status's words, as the rules see them.
VmmState vmm_state_of(const std::string& qemu_status);

}  // namespace pageferry
