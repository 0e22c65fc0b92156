// The `pageferry agent` command: one destination, driven over stdin and stdout by the source's
// `pageferry migrate`.
#pragma once

#include "tools/pageferry/exit_code.h"
#include "tools/pageferry/options.h"
#include "transport/os/clock.h"

namespace pageferry {

// Returns when the guest is resident here, or when it will not be. Blocks.
ExitCode run_agent(const AgentCommand& command, const Clock& clock);

}  // namespace pageferry
