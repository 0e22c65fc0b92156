// Displays and objects.
//
// A display is a window to the guest, no part of it: it may come up at another place, and a
// terminal or desktop that the destination does not have is left out. Objects are host resources;
// the dangerous one is a shared memory file, which must never be the same for both: the
// destination's QEMU would write over the running guest's memory.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "vmstate/qemu_rewrite.h"

namespace pageferry {
namespace {

constexpr int kVncDisplaysMore = 99;  // tried beyond the one asked for
constexpr std::string_view kMemoryFileMark = ".pageferry-";

// host:display; -1 if the number is missing.
int display_number(const std::string& address) {
  const auto colon = address.rfind(':');
  if (colon == std::string::npos) return -1;
  int number = -1;
  const auto [end, error] =
      std::from_chars(address.data() + colon + 1, address.data() + address.size(), number);
  return error == std::errc() && end == address.data() + address.size() ? number : -1;
}

Result<std::string> rewritten_vnc(const std::string& text, Rewrite& rewrite) {
  PF_ASSIGN(QemuOption value, QemuOption::parse(text, "vnc"));
  const std::string address = value.get_or("vnc", "none");
  if (value.is_on("password")) rewrite.note("VNC: the password has to be set again (set_password)");
  if (address.starts_with("unix:")) {
    const std::string moved = rewrite.moved_socket(address.substr(5));
    rewrite.note(fmt::format("VNC: listens on {} instead of {}", moved, address.substr(5)));
    value.set("vnc", "unix:" + moved);
    return value.text();
  }
  const int number = display_number(address);
  if (!rewrite.same_host() || value.is_on("reverse") || number < 0) return value.text();
  if (!value.has("to")) {
    value.set("to", std::to_string(number + kVncDisplaysMore));
    rewrite.note(
        fmt::format("VNC: display {} is the source's until it ends; the first free one after it is "
                    "used (see query-vnc)",
                    address));
  }
  const std::string websocket = value.get_or("websocket", "off");
  if (websocket != "off" && websocket != "on") value.set("websocket", "on");
  return value.text();
}

Result<void> rewrite_spice(const CommandLineOption& option, Rewrite& rewrite) {
  PF_ASSIGN(QemuOption value, QemuOption::parse(option.value.value_or(""), ""));
  if (!value.is_on("disable-ticketing") && !value.has("password-secret")) {
    rewrite.note("SPICE: a ticket set at run time has to be set again (set_password)");
  }
  if (value.is_on("unix")) {
    value.set("addr", rewrite.moved_socket(value.get_or("addr", "spice.sock")));
    rewrite.note(fmt::format("SPICE: listens on {}", *value.get("addr")));
  } else if (rewrite.same_host() && (value.has("port") || value.has("tls-port"))) {
    for (const char* key : {"port", "tls-port", "ipv4", "ipv6", "addr"}) value.erase(key);
    value.set("addr", rewrite.moved_socket("spice.sock"));
    value.set("unix", "on");
    rewrite.note(fmt::format("SPICE: its port is the source's until it ends; listens on {}",
                             *value.get("addr")));
  }
  rewrite.keep(option, value);
  return {};
}

// Only a file that both would map and write is changed.
Result<void> rewrite_memory_file(const CommandLineOption& option, QemuOption& value,
                                 Rewrite& rewrite) {
  const std::string path = value.get_or("mem-path", "");
  if (!rewrite.same_host() || !value.is_on("share") || value.is_on("readonly")) return {};
  if (path.empty()) return refuse_option(option, "no mem-path");
  if (rewrite.place().is_directory && rewrite.place().is_directory(path)) return {};
  const std::string original = path.substr(0, path.find(kMemoryFileMark));
  const std::string own = fmt::format("{}{}{}-{}", original, kMemoryFileMark,
                                      rewrite.place().run_id, rewrite.next_number("memory-file"));
  value.set("mem-path", own);
  rewrite.result().files_made.push_back(own);
  rewrite.note(
      fmt::format("memory backend {}: file {} instead of {}, which holds the source's memory",
                  value.get_or("id", "?"), own, path));
  return {};
}

}  // namespace

Result<void> rewrite_display(const CommandLineOption& option, Rewrite& rewrite) {
  const std::string text = option.value.value_or("");
  if (option.name == "spice") return rewrite_spice(option, rewrite);
  if (option.name == "vnc") {
    PF_ASSIGN(std::string vnc, rewritten_vnc(text, rewrite));
    rewrite.keep({"vnc", std::move(vnc)});
    return {};
  }
  constexpr std::string_view kVnc = "vnc=";
  if (text.starts_with(kVnc)) {
    PF_ASSIGN(const std::string vnc, rewritten_vnc(text.substr(kVnc.size()), rewrite));
    rewrite.keep({"display", std::string(kVnc) + vnc});
    return {};
  }
  const std::string kind = option.name == "display" ? text.substr(0, text.find(',')) : option.name;
  const bool needs_desktop =
      kind == "gtk" || kind == "sdl" || kind == "cocoa" || kind == "default" || kind == "spice-app";
  if (kind == "curses" || (needs_desktop && !rewrite.same_host())) {
    rewrite.note(
        fmt::format("display {}: left out, the destination has no terminal or desktop", kind));
    rewrite.keep({"display", "none"});
    return {};
  }
  rewrite.keep(option);
  return {};
}

Result<void> rewrite_object(const CommandLineOption& option, Rewrite& rewrite) {
  PF_ASSIGN(QemuOption value, QemuOption::parse(option.value.value_or(""), "qom-type"));
  const std::string type = value.get_or("qom-type", "");
  if (type == "memory-backend-file") {
    PF_TRY(rewrite_memory_file(option, value, rewrite));
  } else if (type == "filter-dump") {
    value.set("file", rewrite.moved_file(value.get_or("file", "dump.pcap")));
  }
  rewrite.keep(option, value);
  return {};
}

}  // namespace pageferry
