// Options: the command line, parsed and checked into values. CLI11 does the parsing; its exit codes
// never reach the user.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "tools/pageferry/fail_points.h"
#include "tools/pageferry/memory_source.h"
#include "tools/pageferry/reporter.h"
#include "transport/faulty_file.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/qemu_restore.h"
#include "vmstate/vm_address.h"

namespace pageferry {

enum class TimeoutAction : std::uint8_t { abort, switch_now };
enum class KeepImage : std::uint8_t { no, yes };     // after `resident`
enum class SourceEnd : std::uint8_t { quit, keep };  // the source VMM after the hand-off
enum class ReadBack : std::uint8_t { no, yes };  // --verify: read everything back before release

// What every command knows.
struct CommonOptions {
  OutputStyle style = OutputStyle::human;
  Verbosity verbosity = Verbosity::normal;
  std::string run_dir;  // locks, control sockets, destinations' run directories
  FailPoints fail_points;
  // --inject-store (docs/fault-injection.md): as given, for another process of ours, and parsed.
  std::string store_fault_spec;
  std::vector<StorageFault> store_faults;
};

// --base: what was stored of the guest before, and need not be written again.
struct BaseChoice {
  enum class Kind : std::uint8_t { none, automatic, named } kind = Kind::none;
  std::string attempt;  // named: of its directory
};

struct SourceOptions {
  VmAddress vm;
  std::string store;
  std::string name;                         // empty: the VM's UUID
  std::uint64_t bandwidth_bytes_per_s = 0;  // 0 = no limit
  Milliseconds max_downtime{300};
  std::optional<Seconds> timeout;
  TimeoutAction timeout_action = TimeoutAction::abort;
  Seconds blackout_limit{30};
  ReadBack read_back = ReadBack::no;
  SourceEnd source_end = SourceEnd::quit;
  BaseChoice base;
};

struct DestinationOptions {
  std::string store;
  std::string name;
  PrefetchOrder order = PrefetchOrder::hot;
  PagePlacement placement = PagePlacement::automatic;
  KeepImage keep = KeepImage::no;
  std::string incoming_command;  // empty: the source's own command line, rewritten
};

struct MigrateCommand {
  CommonOptions common;
  SourceOptions source;
  DestinationOptions destination;
  std::vector<std::string> to;
  enum class Mode : std::uint8_t { run, dry_run } mode = Mode::run;
};
struct SendCommand {
  CommonOptions common;
  SourceOptions source;
};
struct ReceiveCommand {
  CommonOptions common;
  DestinationOptions destination;
};
// receive --firecracker
struct FirecrackerCommand {
  CommonOptions common;
  std::string socket;
  std::string file;
  MemoryFileKind kind = MemoryFileKind::plain;
  PrefetchOrder order = PrefetchOrder::hot;
};
struct AgentCommand {
  CommonOptions common;
};
struct StatusCommand {
  CommonOptions common;
  std::string store;
  std::string name;
  enum class Mode : std::uint8_t { once, watch } mode = Mode::once;
};
struct AbortCommand {
  CommonOptions common;
  std::string name;
};
struct RecoverCommand {
  CommonOptions common;
  DestinationOptions destination;
  std::optional<VmAddress> vm;  // the VMM; else as the records say
};
struct InspectCommand {
  CommonOptions common;
  std::string file;
  ReadBack read_back = ReadBack::no;
};
struct CheckCommand {
  CommonOptions common;
  SourceOptions source;
};

using Command =
    std::variant<MigrateCommand, SendCommand, ReceiveCommand, AgentCommand, StatusCommand,
                 AbortCommand, RecoverCommand, InspectCommand, CheckCommand, FirecrackerCommand>;

// Either a command, or text to print and an exit code (help, version, a usage error:
// ExitCode::usage).
struct UsageAnswer {
  std::string text;
  ExitCode code = ExitCode::usage;
};
tl::expected<Command, UsageAnswer> parse_command_line(int argc, const char* const* argv);

}  // namespace pageferry
