// What the hooks of this host's VMMs say of a VM, for `status`: where its guest is, and how far a pager is, read out of the page that the
// pager shares: neither it nor the guest is disturbed.
//
// Thread rule: functions without state.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "tools/pageferry/hand_off.h"
#include "transport/os/clock.h"
#include "vmstate/hook_progress.h"

namespace pageferry {

// As docs/json-output.md says. Pure.
nlohmann::json progress_to_json(const HookProgress& progress);

// One entry for each VMM; empty when there is none.
nlohmann::json status_of_hooks(const std::string& run_dir, const std::string& vm_name,
                               const HandOff& hand_off, const Clock& clock);

}  // namespace pageferry
