// Host forwards of the source's user-mode networks as they travel to the agent, which puts them
// back once the source has ended.
//
// Thread rule: pure functions.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "transport/os/error.h"
#include "vmstate/qemu_host_forwards.h"

namespace pageferry {

nlohmann::json host_forwards_to_json(const std::vector<HostForward>& forwards);
// invalid: not what the function above makes.
Result<std::vector<HostForward>> host_forwards_from_json(const nlohmann::json& json);

}  // namespace pageferry
