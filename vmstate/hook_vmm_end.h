// Ends a VMM with a hook whose guest runs elsewhere, or never will here.
//
// Thread rule: functions without state; they block as long as the bounds in qemu_spawn.h say at most.
#pragma once

#include "transport/host_identity.h"
#include "transport/os/error.h"
#include "vmstate/hook_client.h"

namespace pageferry {

// END, where `client` is not null and the VMM is committed, so that it may end by itself; then signals. Success when it is gone already.
// Errors: timeout (it does not die).
Result<void> end_hook_vmm(const ProcessIdentity& identity, HookClient* client);

}  // namespace pageferry
