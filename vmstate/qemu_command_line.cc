// QEMU takes the argument behind an option as its value whatever it looks like (`-append -v`), so
// the only way to read a command line is to know each option. The two lists are those of
// `qemu-system-x86_64 -help` of 5.2 to 10.0, plus what distributions add.
#include "vmstate/qemu_command_line.h"

#include <fmt/format.h>

#include <string_view>

namespace pageferry {
namespace {

// Between spaces.
constexpr std::string_view kFlags =
    " S alt-grab async-teardown audio-help ctrl-grab curses daemonize enable-fips"
    " enable-kvm enable-sync-profile full-screen h help jitdump mem-prealloc no-acpi"
    " no-fd-bootchk no-frame no-hpet no-quit no-reboot no-shutdown no-user-config"
    " nodefaults nodefconfig nographic nouserconfig old-param one-insn-per-tb"
    " only-migratable perfmap portrait preconfig s sdl semihosting singlestep snapshot usb"
    " version win2k-hack xen-attach xen-domid-restrict ";

constexpr std::string_view kWithValue =
    " D L M accel acpitable action add-fd append audio audiodev bios blockdev boot"
    " cdrom chardev chroot compat cpu d debugcon device dfilter display drive dtb"
    " dump-vmstate echr fda fdb fsdev fw_cfg g gdb global hda hdb hdc hdd icount id"
    " incoming initrd iscsi k kernel loadvm m machine mem-path mon monitor msg"
    " mtdblock name net netdev nic numa object option-rom overcommit parallel pflash"
    " pidfile plugin prom-env qmp qmp-pretty qtest qtest-log readconfig realtime"
    " rotate rtc run-with runas sandbox sd seed semihosting-config serial set shim"
    " smbios smp soundhw spice tb-size tpmdev trace usbdevice uuid vga virtfs vnc"
    " watchdog watchdog-action writeconfig xen-domid ";

bool lists(std::string_view names, const std::string& name) {
  return !name.empty() && name.find(' ') == std::string::npos &&
         names.find(" " + name + " ") != std::string_view::npos;
}

}  // namespace

Result<CommandLine> parse_command_line(const std::vector<std::string>& argv) {
  if (argv.empty() || argv.front().empty())
    return fail(Errc::invalid, "QEMU's command line is empty");
  CommandLine command{.program = argv.front(), .options = {}};
  for (std::size_t i = 1; i < argv.size(); ++i) {
    const std::string& argument = argv[i];
    if (argument.empty() || argument.front() != '-') {
      command.options.push_back({"", argument});
      continue;
    }
    const std::string name = argument.substr(argument.starts_with("--") ? 2 : 1);
    if (lists(kFlags, name)) {
      command.options.push_back({name, std::nullopt});
    } else if (!lists(kWithValue, name)) {
      return fail(
          Errc::invalid,
          fmt::format(
              "QEMU option {} is not known to this program, which so cannot rewrite the command "
              "line for a destination: give --incoming-command",
              argument));
    } else if (i + 1 == argv.size()) {
      return fail(Errc::invalid, fmt::format("QEMU option {} has no value", argument));
    } else {
      command.options.push_back({name, argv[++i]});
    }
  }
  return command;
}

std::vector<std::string> to_argv(const CommandLine& command) {
  std::vector<std::string> argv{command.program};
  for (const CommandLineOption& option : command.options) {
    if (!option.name.empty()) argv.push_back("-" + option.name);
    if (option.value) argv.push_back(*option.value);
  }
  return argv;
}

}  // namespace pageferry
