// VmAddress: how a user names a running VM: the kind of its VMM and the socket that it serves: qemu:QMP_SOCKET or hook:SOCKET.
//
// Thread rule: value; pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "transport/os/error.h"

namespace pageferry {

enum class VmmKind : std::uint8_t { qemu, hook };

// Also the member of the JSON output that holds the socket.
constexpr std::string_view name_of(VmmKind kind) {
  return kind == VmmKind::qemu ? "qemu" : "hook";
}

struct VmAddress {
  VmmKind kind = VmmKind::qemu;
  std::string socket;
  friend bool operator==(const VmAddress&, const VmAddress&) = default;
};

// invalid: another kind, or no socket.
Result<VmAddress> parse_vm_address(std::string_view text);

}  // namespace pageferry
