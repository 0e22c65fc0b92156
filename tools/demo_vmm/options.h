// The demo VMM's command line, checked.
//
// Thread rule: value; pure but for what CLI11 prints into the text.
#pragma once

#include <string>
#include <vector>

#include "tools/demo_vmm/hook_glue.h"
#include "tools/demo_vmm/vm.h"

namespace pageferry::demo {

struct Options {
  VmSettings vm;
  HookSettings hook;         // socket_path empty: no hook
  std::string control_path;  // empty: none
  std::string status_file;   // empty: none
  Milliseconds status_interval{1'000};
  enum class StatusLines : std::uint8_t { none, on_stdout } status_lines = StatusLines::none;
};

// What to print instead of running, and the exit code: --help (0), or what is wrong (2).
struct Answer {
  int exit_code = 0;
  std::string text;
};

tl::expected<Options, Answer> parse_options(int argc, const char* const* argv);

}  // namespace pageferry::demo
