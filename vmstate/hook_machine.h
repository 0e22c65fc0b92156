// What a VMM with a hook says of its machine, as JSON: from source to destination and back only one of the two is needed to compare them.
//
//   {"machine": text, "slots": [{"name":, "bytes":, "guest-address":}]}
//
// Thread rule: pure functions.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "vmstate/hook_client.h"
#include "vmstate/manifest.h"

namespace pageferry {

// For people and JSON: "running", "moving", ...
std::string_view name_of(HookState state);

nlohmann::json describe_hook_machine(const HookVm& vm);
// The same of the source. Precondition: manifest.hook.
nlohmann::json describe_hook_machine(const VmManifest& manifest);
// One line for each difference, which names both sides. What backs the memory may differ.
std::vector<std::string> compare_hook_machines(const nlohmann::json& source,
                                               const nlohmann::json& destination);

}  // namespace pageferry
