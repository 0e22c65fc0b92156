// Slots are compared in their order, which is also that of the pages in the page file.
#include "vmstate/hook_machine.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace pageferry {
namespace {

nlohmann::json describe(const std::string& machine, const std::vector<RamBlock>& blocks,
                        const std::vector<std::uint64_t>& guest_addresses) {
  nlohmann::json slots = nlohmann::json::array();
  for (std::size_t i = 0; i < blocks.size() && i < guest_addresses.size(); ++i) {
    slots.push_back({{"name", blocks[i].name},
                     {"bytes", blocks[i].length_bytes},
                     {"guest-address", guest_addresses[i]}});
  }
  return {{"machine", machine}, {"slots", std::move(slots)}};
}

nlohmann::json slots_of(const nlohmann::json& machine) {
  return machine.is_object() ? machine.value("slots", nlohmann::json::array())
                             : nlohmann::json::array();
}

}  // namespace

std::string_view name_of(HookState state) {
  switch (state) {
    case HookState::running:
      return "running";
    case HookState::moving:
      return "moving";
    case HookState::paused:
      return "paused";
    case HookState::committed:
      return "committed";
    case HookState::incoming:
      return "incoming";
    case HookState::restoring:
      return "restoring";
    case HookState::moved_away:
      return "moved-away";
  }
  return "unknown";
}

nlohmann::json describe_hook_machine(const HookVm& vm) {
  std::vector<std::uint64_t> guest_addresses;
  for (const HookSlot& slot : vm.slots) guest_addresses.push_back(slot.guest_address);
  return describe(vm.machine, vm.layout.blocks(), guest_addresses);
}

nlohmann::json describe_hook_machine(const VmManifest& manifest) {
  PF_CHECK(manifest.hook.has_value());
  return describe(manifest.hook->machine, manifest.blocks, manifest.hook->guest_addresses);
}

std::vector<std::string> compare_hook_machines(const nlohmann::json& source,
                                               const nlohmann::json& destination) {
  std::vector<std::string> differences;
  const auto text_of = [](const nlohmann::json& machine) {
    return machine.is_object() && machine.contains("machine") ? machine["machine"].dump() : "none";
  };
  if (text_of(source) != text_of(destination)) {
    differences.push_back(fmt::format("machine: {} at the source, {} at the destination",
                                      text_of(source), text_of(destination)));
  }
  const nlohmann::json ours = slots_of(source);
  const nlohmann::json theirs = slots_of(destination);
  if (ours.size() != theirs.size()) {
    differences.push_back(fmt::format("memory: {} slots at the source, {} at the destination",
                                      ours.size(), theirs.size()));
  }
  for (std::size_t i = 0; i < std::min(ours.size(), theirs.size()); ++i) {
    if (ours[i] == theirs[i]) continue;
    differences.push_back(fmt::format("memory slot {}: {} at the source, {} at the destination", i,
                                      ours[i].dump(), theirs[i].dump()));
  }
  return differences;
}

}  // namespace pageferry
