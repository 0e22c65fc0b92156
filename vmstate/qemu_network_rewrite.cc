// Networks. What the guest sees (the card, its MAC address) stays; what the host gives it must not
// be used by two QEMUs.
//
//   user         as it is, without host forwards: a port can be bound once. They are put back when
//                the source has ended.
//   tap, bridge  a new interface from the host's script; one with a name of its own is refused on
//                the same host
//   listening    unix: a new socket in the run directory; ports are refused on the same host, since
//                the peer must find them
//   connecting   as it is
#include <fmt/format.h>

#include "vmstate/qemu_rewrite.h"

namespace pageferry {
namespace {

constexpr std::string_view kOnePort = "its port is in use by the source until that ends";

Result<void> rewrite_user(const CommandLineOption& option, QemuOption& value, Rewrite& rewrite) {
  if (!value.erase("hostfwd")) return {};
  rewrite.note(fmt::format("-{} {}: host forwards are added again when the source has ended",
                           option.name, value.get_or("id", "user")));
  return {};
}

Result<void> rewrite_socket_pair(const CommandLineOption& option, const std::string& side,
                                 QemuOption& value, Rewrite& rewrite) {
  const std::string kind = value.get_or(side + ".type", "");
  if (kind == "unix") {
    const std::string old = value.get_or(side + ".path", "");
    const std::string moved = rewrite.moved_socket(old);
    rewrite.note(fmt::format("-{} {}: socket {} instead of {}", option.name,
                             value.get_or("id", "?"), moved, old));
    value.set(side + ".path", moved);
  } else if (kind == "inet" && rewrite.same_host()) {
    return refuse_option(option, kOnePort);
  }
  return {};
}

Result<void> rewrite_kind(const CommandLineOption& option, const std::string& kind,
                          QemuOption& value, Rewrite& rewrite) {
  if (kind == "user") return rewrite_user(option, value, rewrite);
  if (kind == "stream") {
    return value.is_on("server") ? rewrite_socket_pair(option, "addr", value, rewrite)
                                 : Result<void>();
  }
  if (kind == "dgram") return rewrite_socket_pair(option, "local", value, rewrite);
  if (kind == "vhost-vdpa") return refuse_option(option, "a vDPA device cannot be taken along");
  if (kind == "vhost-user") return refuse_option(option, "its back-end process serves one QEMU");
  if (!rewrite.same_host()) return {};
  if (kind == "tap" && value.has("ifname")) {
    return refuse_option(option, fmt::format("interface {} belongs to the source until that ends",
                                             *value.get("ifname")));
  }
  if (kind == "socket" && (value.has("listen") || value.has("udp")))
    return refuse_option(option, kOnePort);
  if (kind == "l2tpv3") return refuse_option(option, kOnePort);
  if (kind == "af-xdp" || kind == "netmap")
    return refuse_option(option, "its interface belongs to the source until that ends");
  return {};
}

}  // namespace

Result<void> rewrite_network(const CommandLineOption& option, Rewrite& rewrite) {
  PF_ASSIGN(QemuOption value, QemuOption::parse(option.value.value_or(""), "type"));
  PF_TRY(rewrite_kind(option, value.get_or("type", ""), value, rewrite));
  rewrite.keep(option, value);
  return {};
}

}  // namespace pageferry
