// QmpCommands: whoever takes commands for a QEMU: a monitor connection (QmpClient), or the out-of-band one that outlives a pager
// (QemuOutOfBand). For code that does not care which.
//
// Thread rule: the implementation's.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "transport/os/clock.h"
#include "transport/os/error.h"

namespace pageferry {

class QmpCommands {
 public:
  virtual ~QmpCommands() = default;

  // Runs one command; returns its "return" value. Errors: vmm (QEMU's error class and text in the message), gone, timeout (the
  // outcome is unknown; the connection is then of no more use).
  virtual Result<nlohmann::json> execute(std::string_view command, nlohmann::json arguments,
                                         Deadline deadline) = 0;
};

}  // namespace pageferry
