// Character devices: where a serial line, a monitor or a debug console goes on the host.
//
//   listening unix socket   a new socket of the same name in the run directory
//   listening TCP socket    same host: a free port (query-chardev tells it); other host: as it is.
//                           Never waits for a client.
//   connecting socket       as it is: the peer decides whether it takes a second connection
//   file, logfile           the same file, appended to. The source writes to it while it runs, the
//                           destination afterwards: one log of one guest. A new file would be lost
//                           with the run directory at the next move, and without `append` QEMU would
//                           empty the log it finds.
//   pipe                    new FIFOs of the same name in the run directory (two readers would steal
//                           each other's input)
//   pty                     a new one, QEMU chooses
//   stdio                   input from nowhere, output into QEMU's log; a monitor there is dropped
//   host serial/parallel    refused on the same host: both would read it
#include <fmt/format.h>

#include <array>
#include <string>

#include "vmstate/qemu_rewrite.h"

namespace pageferry {
namespace {

constexpr std::string_view kHostPort = "a device of the host cannot be used by both QEMUs at once";

bool is_monitor(const std::string& option_name) {
  return option_name == "monitor" || option_name == "qmp" || option_name == "qmp-pretty" ||
         option_name == "gdb";
}

void name_fifos(const std::string& path, Rewrite& rewrite) {
  rewrite.result().fifos.push_back(path + ".in");
  rewrite.result().fifos.push_back(path + ".out");
}

void listen_elsewhere(const std::string& what, QemuOption& value, Rewrite& rewrite) {
  const auto path = value.get("path");
  if (path && !value.is_on("abstract")) {
    const std::string moved = rewrite.moved_socket(*path);
    rewrite.note(fmt::format("{}: listens on {} instead of {}", what, moved, *path));
    value.set("path", moved);
  } else if (path) {
    value.set("path", fmt::format("pageferry-{}-{}", rewrite.place().run_id,
                                  rewrite.next_number("abstract")));
    rewrite.note(fmt::format("{}: listens on the abstract socket {} instead of {}", what,
                             *value.get("path"), *path));
  } else if (rewrite.same_host() && value.has("port") && !value.has("to")) {
    rewrite.note(fmt::format(
        "{}: TCP port {} is the source's until it ends; listens on a free one (see query-chardev)",
        what, *value.get("port")));
    value.set("port", "0");
  }
  value.erase("nowait");  // the old spellings of server=on, wait=off
  value.set("server", "on");
  value.set("wait", "off");
}

// Shared by both spellings; `value` has the members of -chardev.
Result<void> rewrite_members(const CommandLineOption& option, const std::string& what,
                             QemuOption& value, Rewrite& rewrite) {
  const std::string backend = value.get_or("backend", "");
  if (backend == "socket") {
    if (value.is_on("server")) listen_elsewhere(what, value, rewrite);
  } else if (backend == "file") {
    value.set("append", "on");
  } else if (backend == "pipe") {
    const std::string moved = rewrite.moved_file(value.get_or("path", ""));
    rewrite.note(fmt::format("{}: FIFOs {}.in and .out instead of {}", what, moved,
                             value.get_or("path", "")));
    value.set("path", moved);
    name_fifos(moved, rewrite);
  } else if (backend == "udp") {
    if (rewrite.same_host() && value.has("localport")) value.set("localport", "0");
  } else if (backend == "pty") {
    if (const auto link = value.get("path")) value.set("path", rewrite.moved_file(*link));
  } else if (backend == "serial" || backend == "tty" || backend == "parallel" ||
             backend == "parport") {
    if (rewrite.same_host()) return refuse_option(option, kHostPort);
  }
  if (value.has("logfile")) value.set("logappend", "on");
  return {};
}

// "host:port,opts" and ":port,opts" as members; false if there is no port.
bool split_host_port(std::string_view text, QemuOption& value) {
  const auto end = std::min(text.find(','), text.size());
  const std::string_view address = text.substr(0, end);
  const auto colon = address.rfind(':');
  if (colon == std::string_view::npos) return false;
  value.set("host", address.substr(0, colon));
  value.set("port", address.substr(colon + 1));
  return true;
}

std::string joined_options(const QemuOption& value) {
  std::string text;
  for (const std::string& key : value.keys()) {
    if (key == "backend" || key == "host" || key == "port" || key == "path") continue;
    text += fmt::format(",{}={}", key, with_doubled_commas(*value.get(key)));
  }
  return text;
}

struct ShortChardev {
  const CommandLineOption& option;
  std::string prefix;  // "mon:" or ""
  std::string scheme;  // "unix", "tcp", ...
  std::string rest;    // behind the colon
};

Result<void> rewrite_short_unix(const ShortChardev& chardev, Rewrite& rewrite) {
  PF_ASSIGN(QemuOption value, QemuOption::parse(chardev.rest, "path"));
  value.set("backend", "socket");
  PF_TRY(rewrite_members(chardev.option, "-" + chardev.option.name, value, rewrite));
  rewrite.keep({chardev.option.name,
                fmt::format("{}unix:{}{}", chardev.prefix,
                            with_doubled_commas(value.get_or("path", "")), joined_options(value))});
  return {};
}

Result<void> rewrite_short_tcp(const ShortChardev& chardev, Rewrite& rewrite) {
  const auto comma = std::min(chardev.rest.find(','), chardev.rest.size());
  const std::string options = comma < chardev.rest.size() ? chardev.rest.substr(comma + 1) : "";
  PF_ASSIGN(QemuOption value, QemuOption::parse(options, ""));
  value.set("backend", "socket");
  if (!split_host_port(chardev.rest, value))
    return refuse_option(chardev.option, "no port in the address");
  if (chardev.option.name == "gdb" && chardev.scheme == "tcp")
    value.set("server", "on");  // what QEMU takes it for
  PF_TRY(rewrite_members(chardev.option, "-" + chardev.option.name, value, rewrite));
  rewrite.keep({chardev.option.name,
                fmt::format("{}{}:{}:{}{}", chardev.prefix, chardev.scheme, *value.get("host"),
                            *value.get("port"), joined_options(value))});
  return {};
}

// Becomes -chardev, since only that can say `append`.
Result<void> rewrite_short_file(const ShortChardev& chardev, Rewrite& rewrite) {
  if (!chardev.prefix.empty())
    return refuse_option(chardev.option, "a monitor in a file cannot be appended to");
  const std::string id = fmt::format("pageferry-{}{}", chardev.option.name,
                                     rewrite.next_number(chardev.option.name + "-file"));
  rewrite.keep({"chardev", fmt::format("file,id={},path={},append=on", id,
                                       with_doubled_commas(chardev.rest))});
  rewrite.keep({chardev.option.name, "chardev:" + id});
  return {};
}

Result<void> rewrite_short_udp(const ShortChardev& chardev, Rewrite& rewrite) {
  const auto local = chardev.rest.find('@');
  const bool bound = local != std::string::npos && rewrite.same_host();
  rewrite.keep({chardev.option.name,
                chardev.prefix + "udp:" + (bound ? chardev.rest.substr(0, local) : chardev.rest)});
  return {};
}

// The debugger's port is no part of the guest: a socket of its own, if the port is taken.
Result<void> rewrite_gdb(const CommandLineOption& option, Rewrite& rewrite) {
  if (!rewrite.same_host()) {
    rewrite.keep(option);
    return {};
  }
  const std::string path = rewrite.moved_socket("gdb.sock");
  rewrite.note(fmt::format("-{}: the debugger's port is the source's until it ends; listens on {}",
                           option.name, path));
  rewrite.keep({"gdb", fmt::format("unix:{},server=on,wait=off", with_doubled_commas(path))});
  return {};
}

Result<void> rewrite_scheme(const ShortChardev& chardev, Rewrite& rewrite) {
  const std::string& scheme = chardev.scheme;
  if (scheme == "unix") return rewrite_short_unix(chardev, rewrite);
  if (scheme == "tcp" || scheme == "telnet" || scheme == "tn3270" || scheme == "websocket") {
    return rewrite_short_tcp(chardev, rewrite);
  }
  if (scheme == "file") return rewrite_short_file(chardev, rewrite);
  if (scheme == "udp") return rewrite_short_udp(chardev, rewrite);
  if (scheme == "pipe") {
    const std::string moved = rewrite.moved_file(chardev.rest);
    name_fifos(moved, rewrite);
    rewrite.keep({chardev.option.name, chardev.prefix + "pipe:" + moved});
    return {};
  }
  if (scheme == "pty") {
    rewrite.keep({chardev.option.name, chardev.prefix + "pty:" + rewrite.moved_file(chardev.rest)});
    return {};
  }
  if (scheme == "chardev" || scheme == "vc" || scheme == "con") {
    rewrite.keep(chardev.option);
    return {};
  }
  return refuse_option(chardev.option,
                       "this kind of character device is not known to this program");
}

}  // namespace

Result<void> rewrite_chardev(const CommandLineOption& option, Rewrite& rewrite) {
  PF_ASSIGN(QemuOption value, QemuOption::parse(option.value.value_or(""), "backend"));
  if (is_our_chardev(value.get("id"))) return {};
  PF_TRY(rewrite_members(option, "chardev " + value.get_or("id", "?"), value, rewrite));
  rewrite.keep(option, value);
  return {};
}

Result<void> rewrite_short_chardev(const CommandLineOption& option, Rewrite& rewrite) {
  const std::string text = option.value.value_or("");
  if (option.name == "s" || (option.name == "gdb" && text.starts_with("tcp:")))
    return rewrite_gdb(option, rewrite);
  const bool mux = text.starts_with("mon:");
  const std::string inner = mux ? text.substr(4) : text;
  if (inner == "stdio" && is_monitor(option.name)) {
    rewrite.note(fmt::format("-{} stdio: dropped, the destination has no terminal", option.name));
    if (option.name == "monitor") rewrite.keep({"monitor", "none"});
    return {};
  }
  if (inner.starts_with("/dev/")) {
    if (rewrite.same_host()) return refuse_option(option, kHostPort);
    rewrite.keep(option);
    return {};
  }
  const auto colon = inner.find(':');
  if (colon == std::string::npos) {  // none, null, vc, pty, stdio, msmouse, braille, ...: a word
    rewrite.keep(option);
    return {};
  }
  return rewrite_scheme({.option = option,
                         .prefix = mux ? "mon:" : "",
                         .scheme = inner.substr(0, colon),
                         .rest = inner.substr(colon + 1)},
                        rewrite);
}

}  // namespace pageferry
