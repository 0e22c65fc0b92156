// HookState file: the device state of a guest of a VMM with a hook, as the VMM wrote it, with the machine text of the VMM, so that it is
// loaded into its like only. Stored as the attempt's file "state"; docs/hook-state-format.md gives every byte.
//
// Thread rule: pure functions.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "transport/os/error.h"

namespace pageferry {

struct HookDeviceState {
  std::string machine;
  std::vector<std::byte> state;
  friend bool operator==(const HookDeviceState&, const HookDeviceState&) = default;
};

// Precondition: both are within the limits of hook_protocol.h.
std::vector<std::byte> encode_hook_state(std::string_view machine,
                                         std::span<const std::byte> state);
// corrupt (checksum, magic, truncated, a length beyond its limit) or version; the message names field, value, limit.
Result<HookDeviceState> decode_hook_state(std::span<const std::byte> bytes);

}  // namespace pageferry
