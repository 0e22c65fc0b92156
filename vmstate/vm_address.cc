// The kind ends at the first colon; the rest is a path, whatever it holds.
#include "vmstate/vm_address.h"

#include <fmt/format.h>

namespace pageferry {

Result<VmAddress> parse_vm_address(std::string_view text) {
  for (const VmmKind kind : {VmmKind::qemu, VmmKind::hook}) {
    const std::string prefix = fmt::format("{}:", name_of(kind));
    if (text.starts_with(prefix) && text.size() > prefix.size()) {
      return VmAddress{.kind = kind, .socket = std::string(text.substr(prefix.size()))};
    }
  }
  return fail(Errc::invalid,
              fmt::format("VM '{}' is neither qemu:QMP_SOCKET nor hook:SOCKET", text));
}

}  // namespace pageferry
