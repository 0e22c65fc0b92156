// CommandLine: a QEMU command line as a list of options. Knows which options take a value, and
// nothing of what they mean.
//
// Thread rule: value.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "transport/os/error.h"

namespace pageferry {

struct CommandLineOption {
  std::string name;                  // without dashes; "" for a bare argument (a disk image)
  std::optional<std::string> value;  // of the next argument, or the bare argument itself
  friend bool operator==(const CommandLineOption&, const CommandLineOption&) = default;
};

struct CommandLine {
  std::string program;
  std::vector<CommandLineOption> options;
};

// invalid: no program, a value missing, or an option that this program does not know: it cannot
// tell whether the next argument is its value, and so cannot read what follows.
Result<CommandLine> parse_command_line(const std::vector<std::string>& argv);

std::vector<std::string> to_argv(const CommandLine& command);

}  // namespace pageferry
