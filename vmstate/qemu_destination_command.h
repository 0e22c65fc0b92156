// The command line of the destination's QEMU, made from the one of the running source: same
// machine, same working directory, but nothing on the host is used by both at once.
// docs/destination-command-line.md says what happens to each option, and why.
//
// Running it on its own result gives the same again with the new place put in: a guest that moves a
// hundred times has a command line as long as after the first move.
//
// Thread rule: pure functions and values; no file is looked at but through
// DestinationPlace::is_directory.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/os/error.h"

namespace pageferry {

// Where the destination runs: on the same host the source still holds its ports, interfaces and
// files.
enum class DestinationHost : std::uint8_t { same, other };

struct DestinationPlace {
  DestinationHost host = DestinationHost::same;
  std::string run_directory;  // of the new QEMU, absolute, exists before it is started
  std::string machine_type;   // versioned, as query on the source gave it (pc-q35-7.2)
  std::string
      run_id;  // letters, digits, dashes: makes names unique that cannot live in the run directory
  // Tells memory-backend-file,mem-path=DIRECTORY (QEMU makes a file of its own there) from a file
  // that both would share.
  std::function<bool(const std::string& path)> is_directory;
};

// The chardev behind out_of_band_socket. During a restore its one client is QEMU itself.
inline constexpr std::string_view kOurOutOfBandChardev = "pageferry-oob";

struct DestinationCommand {
  std::vector<std::string> argv;  // argv[0] as the source's
  std::string qmp_socket;         // our own monitor: <run directory>/pageferry-qmp.sock
  // Another of ours, for the connection that qemu_out_of_band.h leaves; "": a command of the user's has none.
  std::string out_of_band_socket;
  std::vector<std::string> fifos;  // to be made before the start (pipe chardevs)
  // Shared memory files, outside the run directory: remove them once this QEMU has them open.
  std::vector<std::string> files_made;
  std::vector<std::string> notes;  // one line for each thing a user may miss at its old place
};

// Errors: invalid, one line that names the option: something that cannot exist twice or cannot be
// taken along (fd=, -loadvm, -snapshot, -add-fd, -readconfig, a named tap interface on the same
// host, options this program does not know, ...). The message ends with the way out
// (--incoming-command).
Result<DestinationCommand> make_destination_command(const std::vector<std::string>& source_argv,
                                                    const DestinationPlace& place);

// --incoming-command: every {qmp} replaced by the quoted path, to be run by /bin/sh -c (see
// shell_argv). invalid without {qmp}.
Result<DestinationCommand> make_destination_command_from_template(
    const std::string& command_template, const std::string& run_directory);

}  // namespace pageferry
