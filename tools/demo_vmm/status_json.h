// What the demo VMM says about itself, as one JSON object: its status lines, its status file and its control socket have the same.
// tools/demo_vmm/README.md names every member.
//
// Thread rule: pure functions.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "tools/demo_vmm/vm.h"

namespace pageferry::demo {

// `hook_state`: "" without a hook. `dirty_mib_s`: what the guest wrote in the last second.
nlohmann::json status_json(const VmStatus& status, const std::string& hook_state,
                           double dirty_mib_s);

}  // namespace pageferry::demo
