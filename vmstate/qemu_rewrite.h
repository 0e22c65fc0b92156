// The parts of make_destination_command: what happens to one option. Internal to vmstate.
//
// Thread rule: one thread; a Rewrite lives as long as one make_destination_command.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "transport/os/error.h"
#include "vmstate/qemu_command_line.h"
#include "vmstate/qemu_destination_command.h"
#include "vmstate/qemu_option.h"

namespace pageferry {

inline constexpr std::string_view kOurQmpChardev = "pageferry-qmp";
// What an earlier move added; the new ones are added at the end.
inline bool is_our_chardev(const std::optional<std::string>& id) {
  return id == kOurQmpChardev || id == kOurOutOfBandChardev;
}

// What the parts share: the place, the names given so far, the result.
class Rewrite {
 public:
  Rewrite(const DestinationPlace& place, DestinationCommand& result)
      : place_(place), result_(result) {}

  const DestinationPlace& place() const { return place_; }
  bool same_host() const { return place_.host == DestinationHost::same; }

  // A path in the run directory with the same last part; another one if two options want the same.
  std::string moved_file(const std::string& old_path);
  // The same for a socket, whose path must fit sun_path.
  std::string moved_socket(const std::string& old_path);

  void keep(CommandLineOption option) { options_.push_back(std::move(option)); }
  void keep(const CommandLineOption& option, const QemuOption& value) {
    options_.push_back({option.name, value.text()});
  }
  void note(std::string text) { result_.notes.push_back(std::move(text)); }
  DestinationCommand& result() { return result_; }
  std::vector<CommandLineOption>& options() { return options_; }

  // How often this option came so far: numbers -serial 0, 1, ...
  unsigned next_number(const std::string& option_name) { return numbers_[option_name]++; }

 private:
  const DestinationPlace& place_;
  DestinationCommand& result_;
  std::vector<CommandLineOption> options_;
  std::map<std::string, unsigned> used_names_;
  std::map<std::string, unsigned> numbers_;
};

// invalid, "QEMU option -x y: <why>; give --incoming-command".
Unexpected refuse_option(const CommandLineOption& option, std::string_view why);

// -chardev.
Result<void> rewrite_chardev(const CommandLineOption& option, Rewrite& rewrite);
// -serial, -parallel, -debugcon, -monitor, -qmp, -qmp-pretty, -gdb: the short spelling of a
// chardev.
Result<void> rewrite_short_chardev(const CommandLineOption& option, Rewrite& rewrite);
// -netdev, -nic, -net.
Result<void> rewrite_network(const CommandLineOption& option, Rewrite& rewrite);
// -vnc, -display, -spice, -curses.
Result<void> rewrite_display(const CommandLineOption& option, Rewrite& rewrite);
// -object.
Result<void> rewrite_object(const CommandLineOption& option, Rewrite& rewrite);

}  // namespace pageferry
