// Starts a QEMU and ends one. A started QEMU is nobody's child for long: it has its own session, no
// terminal, no descriptor of ours, and outlives the tool. It is known by pid and start time from
// then on.
//
// Thread rule: functions without state, one thread per QEMU. They block until their deadline at
// most.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/qemu_process.h"
#include "vmstate/qmp_client.h"

namespace pageferry {

enum class LaunchKind : std::uint8_t {
  qemu,   // argv is QEMU's: when the started process ends, the start has failed
  shell,  // argv runs a command that starts QEMU; it may end successfully while QEMU goes on
};

struct QemuLaunch {
  LaunchKind kind = LaunchKind::qemu;
  std::string executable;  // run with argv as given; empty = argv[0] looked up in PATH
  std::vector<std::string> argv;
  std::string working_directory;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::vector<std::uint32_t> groups;
  std::string qmp_socket;  // of ours, on the command line: the start is over when it answers
  std::string log_file;    // made 0600, QEMU's stdout and stderr
  std::vector<std::string> fifos;  // made 0600 before the start
};

// As the source's VMM was started: user, groups, directory; the log in the run directory.
QemuLaunch launch_as_source(const VmmProcess& source, const std::string& run_directory);

// Starts a VMM and waits until `connected` succeeds; it is asked again while it says not_found or gone. On any error nothing is left
// running, and the message ends with the last lines of the log. `what`: names the VMM in messages.
Result<void> start_vmm(const QemuLaunch& launch, std::string_view what,
                       const std::function<Result<void>()>& connected, Deadline deadline);

struct RunningQemu {
  ProcessIdentity identity;  // of the QEMU itself, also where a shell or -daemonize stands between
  std::unique_ptr<QmpClient> qmp;  // connected to qmp_socket
};

// Starts it and waits until its monitor answers. On any error nothing is left running, and the
// message ends with the last lines of the log. Errors: vmm (it ended), timeout, invalid (no such
// executable, directory), io.
Result<RunningQemu> start_qemu(const QemuLaunch& launch, Deadline deadline);

struct EndBounds {
  Milliseconds after_quit{5000};       // for QMP quit
  Milliseconds after_terminate{3000};  // then SIGTERM
  Milliseconds after_kill{5000};       // then SIGKILL
};
// How it ended in the end.
enum class EndedBy : std::uint8_t { was_gone, quit, terminate, kill };

// Ends a QEMU: QMP quit (where `qmp` is not null and still connected), SIGTERM, SIGKILL through a
// pidfd, and waits for the process to be gone. Never signals another process that got the same pid.
// timeout: it does not die (stuck in the kernel).
Result<EndedBy> end_qemu(const ProcessIdentity& identity, QmpClient* qmp, const EndBounds& bounds);

// The last `lines_max` lines of a log, joined by " | ", control characters replaced; "" if there is
// none.
std::string last_lines_of(const std::string& log_file, std::size_t lines_max);

}  // namespace pageferry
