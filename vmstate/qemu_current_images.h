// The images of -drive options as they are open now: a snapshot has put another one on top, a medium was changed or ejected. Internal to
// vmstate; the comparison of both machines judges the result.
//
// Thread rule: pure function.
#pragma once

#include <nlohmann/json.hpp>

#include "transport/os/error.h"
#include "vmstate/qemu_command_line.h"

namespace pageferry {

// Changes `file` and `format` of each -drive with an id whose top image is another one than the option says. Drives without id and
// -blockdev are left as they are. Errors: invalid (an option that cannot be read).
Result<void> use_current_images(const nlohmann::json& machine, CommandLine& command);

}  // namespace pageferry
