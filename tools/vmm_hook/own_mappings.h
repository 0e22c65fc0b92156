// Whether memory slots are mapped in this process as the VMM says they are (/proc/self/maps). A slot that names another file than the one
// that is mapped would send other pages than the guest's, without any error later.
//
// Thread rule: any thread.
#pragma once

#include "tools/vmm_hook/hook_config.h"
#include "transport/os/error.h"

namespace pageferry {

// Errors: invalid (a slot is not mapped as a whole, or not from its file, or is shared without a file), unsupported (no /proc), io.
Result<void> check_own_mappings(const HookConfig& config);

}  // namespace pageferry
