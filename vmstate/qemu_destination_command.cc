// One pass over the source's options. Each is kept, changed, dropped or refused by the table at the
// end of this file; an option in no table is kept: it describes the machine (that it is known at
// all was checked by parse_command_line).
//
// Invariants:
//   I1  what was added for an earlier destination (-S, -incoming, our monitors) is dropped before it
//   is added again, so moving n
//       times gives the same length as moving once
//   I2  exactly one machine type is left, the versioned one
//   I3  no option that carries a descriptor number is kept: the number means nothing in another
//   process
#include "vmstate/qemu_destination_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "vmstate/qemu_rewrite.h"

namespace pageferry {
namespace {

using Handler = Result<void> (*)(const CommandLineOption&, Rewrite&);

constexpr std::size_t kSocketPathBytesMax = 107;
constexpr std::string_view kQmpSocketName = "pageferry-qmp.sock";
constexpr std::string_view kOutOfBandSocketName = "pageferry-oob.sock";
constexpr std::string_view kLogName = "qemu.log";

std::string last_part(const std::string& path) {
  const std::string name = path.substr(path.rfind('/') + 1);
  return name.empty() ? "file" : name;
}

// --- options by name ---

Result<void> drop(const CommandLineOption&, Rewrite&) {
  return {};
}

Result<void> move_file(const CommandLineOption& option, Rewrite& rewrite) {
  rewrite.keep({option.name, rewrite.moved_file(option.value.value_or(""))});
  return {};
}

Result<void> rewrite_machine(const CommandLineOption& option, Rewrite& rewrite) {
  PF_ASSIGN(QemuOption value, QemuOption::parse(option.value.value_or(""), "type"));
  value.erase("type");
  if (rewrite.next_number("machine") == 0) {
    const std::string others = value.text();
    rewrite.keep(
        {option.name, rewrite.place().machine_type + (others.empty() ? "" : "," + others)});
  } else if (!value.empty()) {
    rewrite.keep(option, value);
  }
  return {};
}

Result<void> rewrite_mon(const CommandLineOption& option, Rewrite& rewrite) {
  PF_ASSIGN(const QemuOption value, QemuOption::parse(option.value.value_or(""), "chardev"));
  if (!is_our_chardev(value.get("chardev"))) rewrite.keep(option);
  return {};
}

Result<void> rewrite_trace(const CommandLineOption& option, Rewrite& rewrite) {
  PF_ASSIGN(QemuOption value, QemuOption::parse(option.value.value_or(""), "enable"));
  if (const auto file = value.get("file")) value.set("file", rewrite.moved_file(*file));
  rewrite.keep(option, value);
  return {};
}

Result<void> rewrite_audio(const CommandLineOption& option, Rewrite& rewrite) {
  PF_ASSIGN(QemuOption value, QemuOption::parse(option.value.value_or(""), "driver"));
  if (value.get("driver") == "wav")
    value.set("path", rewrite.moved_file(value.get_or("path", "qemu.wav")));
  rewrite.keep(option, value);
  return {};
}

// QEMU already is the user that it was told to become.
Result<void> rewrite_run_with(const CommandLineOption& option, Rewrite& rewrite) {
  PF_ASSIGN(QemuOption value, QemuOption::parse(option.value.value_or(""), ""));
  if (value.has("chroot")) return refuse_option(option, "only root may change the root directory");
  value.erase("user");
  if (!value.empty()) rewrite.keep(option, value);
  return {};
}

Result<void> rewrite_drive(const CommandLineOption& option, Rewrite& rewrite) {
  PF_ASSIGN(const QemuOption value, QemuOption::parse(option.value.value_or(""), "file"));
  if (value.is_on("snapshot"))
    return refuse_option(option, "a temporary overlay exists in the source only");
  rewrite.keep(option);
  return {};
}

Result<void> rewrite_device(const CommandLineOption& option, Rewrite& rewrite) {
  PF_ASSIGN(const QemuOption value, QemuOption::parse(option.value.value_or(""), "driver"));
  if (rewrite.same_host() && value.get_or("driver", "").starts_with("vhost-vsock")) {
    return refuse_option(option,
                         fmt::format("its guest-cid {} belongs to the source until that ends",
                                     value.get_or("guest-cid", "?")));
  }
  rewrite.keep(option);
  return {};
}

Result<void> rewrite_set(const CommandLineOption& option, Rewrite& rewrite) {
  const std::string group =
      option.value.value_or("").substr(0, option.value.value_or("").find('.'));
  if (group != "device") return refuse_option(option, "only -set device. can be taken along");
  rewrite.keep(option);
  return {};
}

Result<void> refuse_by_name(const CommandLineOption& option, Rewrite&) {
  struct Reason {
    std::string_view name;
    std::string_view why;
  };
  static constexpr std::array<Reason, 10> kReasons = {{
      {"loadvm", "the snapshot would be loaded over the moved guest"},
      {"snapshot", "the temporary overlays exist in the source only"},
      {"add-fd", "a descriptor number means nothing in another process"},
      {"readconfig", "what the file holds cannot be rewritten"},
      {"writeconfig", "it would overwrite the source's file"},
      {"chroot", "only root may change the root directory"},
      {"preconfig", "the destination would wait for x-exit-preconfig"},
      {"dump-vmstate", "QEMU ends after it"},
      {"xen-domid", "Xen domains cannot be moved"},
      {"xen-attach", "Xen domains cannot be moved"},
  }};
  for (const Reason& reason : kReasons) {
    if (reason.name == option.name) return refuse_option(option, reason.why);
  }
  return refuse_option(option, "it cannot be taken along");
}

struct Entry {
  std::string_view name;
  Handler handler;
};
constexpr std::array kTable = {
    Entry{"S", drop},
    Entry{"incoming", drop},
    Entry{"daemonize", drop},  // start_qemu does the same, and knows the pid
    Entry{"runas", drop},
    Entry{"pidfile", move_file},
    Entry{"D", move_file},
    Entry{"M", rewrite_machine},
    Entry{"machine", rewrite_machine},
    Entry{"mon", rewrite_mon},
    Entry{"chardev", rewrite_chardev},
    Entry{"serial", rewrite_short_chardev},
    Entry{"parallel", rewrite_short_chardev},
    Entry{"debugcon", rewrite_short_chardev},
    Entry{"monitor", rewrite_short_chardev},
    Entry{"qmp", rewrite_short_chardev},
    Entry{"qmp-pretty", rewrite_short_chardev},
    Entry{"gdb", rewrite_short_chardev},
    Entry{"s", rewrite_short_chardev},
    Entry{"netdev", rewrite_network},
    Entry{"nic", rewrite_network},
    Entry{"net", rewrite_network},
    Entry{"vnc", rewrite_display},
    Entry{"display", rewrite_display},
    Entry{"curses", rewrite_display},
    Entry{"sdl", rewrite_display},
    Entry{"spice", rewrite_display},
    Entry{"object", rewrite_object},
    Entry{"trace", rewrite_trace},
    Entry{"audiodev", rewrite_audio},
    Entry{"audio", rewrite_audio},
    Entry{"run-with", rewrite_run_with},
    Entry{"drive", rewrite_drive},
    Entry{"device", rewrite_device},
    Entry{"set", rewrite_set},
    Entry{"loadvm", refuse_by_name},
    Entry{"snapshot", refuse_by_name},
    Entry{"add-fd", refuse_by_name},
    Entry{"readconfig", refuse_by_name},
    Entry{"writeconfig", refuse_by_name},
    Entry{"chroot", refuse_by_name},
    Entry{"preconfig", refuse_by_name},
    Entry{"dump-vmstate", refuse_by_name},
    Entry{"xen-domid", refuse_by_name},
    Entry{"xen-attach", refuse_by_name},
    Entry{"qtest", refuse_by_name},
    Entry{"qtest-log", refuse_by_name},
};

// Options whose value is members: only in them can a key mean a descriptor.
constexpr std::array<std::string_view, 14> kWithMembers = {
    "chardev",  "netdev", "nic",    "net",   "device", "object",   "drive",
    "blockdev", "fsdev",  "virtfs", "spice", "tpmdev", "incoming", "accel"};

Result<void> refuse_descriptors(const CommandLineOption& option) {
  if (!option.value || option.name == "incoming") return {};
  if (option.value->find("/dev/fdset/") != std::string::npos) {
    return refuse_option(option, "a descriptor set exists in the source only");
  }
  if (std::find(kWithMembers.begin(), kWithMembers.end(), option.name) == kWithMembers.end())
    return {};
  PF_ASSIGN(const QemuOption value, QemuOption::parse(*option.value, "type"));
  for (const std::string& key : value.keys()) {
    const std::string name = key.substr(key.rfind('.') + 1);
    const bool number = name == "fd" || name == "fds" || name == "vhostfd" || name == "vhostfds" ||
                        name == "sock_fd";
    if (number || (name == "type" && key != "type" && value.get(key) == "fd")) {
      return refuse_option(option, "a descriptor number means nothing in another process");
    }
  }
  return {};
}

Result<void> check_place(const DestinationPlace& place) {
  if (place.run_directory.empty() || place.run_directory.front() != '/') {
    return fail(Errc::invalid,
                fmt::format("run directory \"{}\" is not absolute", place.run_directory));
  }
  if (place.machine_type.empty() || place.machine_type.find_first_of(",= ") != std::string::npos) {
    return fail(Errc::invalid, fmt::format("machine type \"{}\" is none", place.machine_type));
  }
  return {};
}

void add_monitor(Rewrite& rewrite, std::string_view chardev, const std::string& socket) {
  rewrite.keep({"chardev", fmt::format("socket,id={},path={},server=on,wait=off", chardev,
                                       with_doubled_commas(socket))});
  rewrite.keep({"mon", fmt::format("chardev={},mode=control", chardev)});
}

void add_ours(Rewrite& rewrite) {
  if (rewrite.next_number("machine") == 0) {
    rewrite.options().insert(rewrite.options().begin(), {"machine", rewrite.place().machine_type});
  }
  rewrite.keep({"S", std::nullopt});
  rewrite.keep({"incoming", "defer"});
  // The last monitor is the one that answers everything.
  add_monitor(rewrite, kOurOutOfBandChardev, rewrite.result().out_of_band_socket);
  add_monitor(rewrite, kOurQmpChardev, rewrite.result().qmp_socket);
}

}  // namespace

std::string Rewrite::moved_file(const std::string& old_path) {
  std::string name = last_part(old_path);
  if (name == kQmpSocketName || name == kOutOfBandSocketName || name == kLogName)
    name = "user-" + name;
  const unsigned seen = used_names_[name]++;
  if (seen > 0) {
    const auto dot = std::min(name.rfind('.'), name.size());
    name = fmt::format("{}-{}{}", name.substr(0, dot), seen + 1, name.substr(dot));
    ++used_names_[name];
  }
  return place_.run_directory + "/" + name;
}

std::string Rewrite::moved_socket(const std::string& old_path) {
  std::string moved = moved_file(old_path);
  if (moved.size() <= kSocketPathBytesMax) return moved;
  return moved_file(fmt::format("s{}.sock", next_number("long-socket")));
}

Unexpected refuse_option(const CommandLineOption& option, std::string_view why) {
  const std::string dash = option.name.empty() ? "" : "-" + option.name;
  return fail(Errc::invalid, fmt::format("QEMU option {}{}{}: {}; give --incoming-command", dash,
                                         option.value ? " " : "", option.value.value_or(""), why));
}

Result<DestinationCommand> make_destination_command(const std::vector<std::string>& source_argv,
                                                    const DestinationPlace& place) {
  PF_TRY(check_place(place));
  PF_ASSIGN(const CommandLine source, parse_command_line(source_argv));
  DestinationCommand result;
  result.qmp_socket = fmt::format("{}/{}", place.run_directory, kQmpSocketName);
  result.out_of_band_socket = fmt::format("{}/{}", place.run_directory, kOutOfBandSocketName);
  Rewrite rewrite(place, result);
  for (const CommandLineOption& option : source.options) {
    PF_TRY(refuse_descriptors(option));
    const auto entry = std::find_if(kTable.begin(), kTable.end(),
                                    [&option](const Entry& e) { return e.name == option.name; });
    if (entry == kTable.end()) {
      rewrite.keep(option);
    } else {
      PF_TRY(entry->handler(option, rewrite));
    }
  }
  add_ours(rewrite);
  result.argv = to_argv({.program = source.program, .options = std::move(rewrite.options())});
  return result;
}

Result<DestinationCommand> make_destination_command_from_template(
    const std::string& command_template, const std::string& run_directory) {
  constexpr std::string_view kPlaceholder = "{qmp}";
  if (command_template.find(kPlaceholder) == std::string::npos) {
    return fail(
        Errc::invalid,
        "--incoming-command has no {qmp}: without a monitor the destination cannot be driven "
        "(-qmp unix:{qmp},server=on,wait=off)");
  }
  // The path stands inside a QEMU option inside a shell word: neither may give one of its
  // characters a meaning.
  if (run_directory.find_first_not_of(
          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-") !=
      std::string::npos) {
    return fail(
        Errc::invalid,
        fmt::format("run directory \"{}\" has characters that a shell or QEMU would take apart",
                    run_directory));
  }
  DestinationCommand result;
  result.qmp_socket = fmt::format("{}/{}", run_directory, kQmpSocketName);
  std::string command = command_template;
  for (auto at = command.find(kPlaceholder); at != std::string::npos;
       at = command.find(kPlaceholder, at)) {
    command.replace(at, kPlaceholder.size(), result.qmp_socket);
    at += result.qmp_socket.size();
  }
  result.argv = {"/bin/sh", "-c", std::move(command)};
  return result;
}

}  // namespace pageferry
