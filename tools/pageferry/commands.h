// The commands of the program, each from parsed options to an exit code. main() only dispatches.
//
// Thread rule: one command a process.
#pragma once

#include "tools/pageferry/exit_code.h"
#include "tools/pageferry/options.h"
#include "transport/os/clock.h"

namespace pageferry {

ExitCode run_migrate(const MigrateCommand& command, const Clock& clock);
ExitCode run_send(const SendCommand& command, const Clock& clock);
ExitCode run_receive(const ReceiveCommand& command, const Clock& clock);
ExitCode run_firecracker(const FirecrackerCommand& command, const Clock& clock);
ExitCode run_recover(const RecoverCommand& command, const Clock& clock);
ExitCode run_status(const StatusCommand& command, const Clock& clock);
ExitCode run_abort(const AbortCommand& command, const Clock& clock);
ExitCode run_inspect(const InspectCommand& command, const Clock& clock);
ExitCode run_check(const CheckCommand& command, const Clock& clock);

}  // namespace pageferry
