// The command line by CLI11: flags are spelled as virsh and qm spell them. Each add_* function
// below declares one group of flags on a subcommand; values are checked here, so the rest of the
// program only sees valid ones.
#include "tools/pageferry/options.h"

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>

#include "tools/pageferry/mebibytes.h"
#include "tools/pageferry/option_names.h"
#include "transport/vm_directory.h"

namespace pageferry {
namespace {

// What CLI11 writes into before it is checked and converted.
struct RawOptions {
  bool json = false;
  bool quiet = false;
  bool verbose = false;
  std::string run_dir;
  std::vector<std::string> fail_at;
  std::string store_fault;
  std::string vm;
  std::string store;
  std::string name;
  std::vector<std::string> to;
  std::uint64_t bandwidth_mib_per_s = 0;
  std::uint64_t max_downtime_ms = 300;
  std::uint64_t timeout_s = 0;
  std::string timeout_action = "abort";
  std::uint64_t blackout_limit_s = 30;
  bool verify = false;
  bool watch = false;
  bool keep_source = false;
  std::string base = "none";
  bool abort_on_error = false;
  bool persistent = false;
  bool undefine_source = false;
  bool dry_run = false;
  std::string prefetch = "hot";
  std::string placement = "auto";
  bool keep = false;
  std::string incoming_command;
  std::string file;
  std::string firecracker;
  std::string memory_file;
  std::string page_file;
};

std::string default_run_dir() {
  if (::geteuid() == 0) return "/run/pageferry";
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  return runtime != nullptr && *runtime != '\0' ? std::string(runtime) + "/pageferry"
                                                : fmt::format("/tmp/pageferry-{}", ::geteuid());
}

void add_common(CLI::App& app, RawOptions& raw) {
  app.add_flag("--json", raw.json, "one JSON object a line on stdout");
  app.add_flag("--quiet", raw.quiet, "say nothing but errors");
  app.add_flag("--verbose", raw.verbose, "say what is being done");
  app.add_option("--run-dir", raw.run_dir, "locks, control sockets, run directories")
      ->default_str(default_run_dir());
  app.add_option("--fail-at", raw.fail_at,
                 "POINT=kill|stop|error|wait:PATH (docs/fault-injection.md)")
      ->take_all();
  app.add_option("--inject-store", raw.store_fault,
                 "faults of the store (docs/fault-injection.md)");
}

void add_source(CLI::App& app, RawOptions& raw) {
  app.add_option("vm", raw.vm, "the VM: qemu:QMP_SOCKET or hook:SOCKET")->required();
  app.add_option("--store", raw.store, "directory on storage that both hosts mount")->required();
  app.add_option("--name", raw.name, "name of the VM on the store (default: its UUID)");
  app.add_option("--bandwidth", raw.bandwidth_mib_per_s, "limit for the page-out, MiB/s (0: none)")
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{1} << 20));
  app.add_option("--max-downtime", raw.max_downtime_ms, "how long the guest may be stopped, ms")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{2'000'000}));
  app.add_option("--timeout", raw.timeout_s,
                 "seconds after which --timeout-action is taken (0: none)")
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{31'536'000}));
  app.add_option("--timeout-action", raw.timeout_action, "abort or switch")
      ->check(CLI::IsMember({"abort", "switch"}));
  app.add_option(
         "--blackout-limit", raw.blackout_limit_s,
         "seconds: a blackout that lasts longer before its commit is given up, the guest runs on")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{86'400}));
  app.add_flag("--verify", raw.verify, "read everything back before the release");
  app.add_flag("--keep-source", raw.keep_source, "do not end the source VMM");
  app.add_option("--base", raw.base,
                 "image on the store whose unchanged pages are not written again: auto, none or "
                 "attempt.N.ID (hook only)");
  app.add_flag("--abort-on-error", raw.abort_on_error,
               "accepted as virsh does; a guest that an I/O error or a panic stops always ends the "
               "migration");
  app.add_flag("--persistent", raw.persistent,
               "accepted as virsh does; a plain QEMU has no definition");
  app.add_flag("--undefinesource", raw.undefine_source,
               "accepted as virsh does; a plain QEMU has no definition");
}

void add_destination(CLI::App& app, RawOptions& raw) {
  app.add_option("--prefetch", raw.prefetch,
                 "order: none, linear, hot or recorded (as the guest touched them "
                 "after its last move)")
      ->check(CLI::IsMember(words_of(kPrefetchOrderNames)));
  app.add_option("--placement", raw.placement,
                 "how pages get into QEMU's memory: auto, direct (its userfaultfd) or stream")
      ->check(CLI::IsMember(words_of(kPlacementNames)));
  app.add_flag("--keep", raw.keep, "keep the image after the guest is resident");
  app.add_option(
      "--incoming-command", raw.incoming_command,
      "starts the destination VMM: CMD ... -S -qmp unix:{qmp},server=on,wait=off -incoming defer");
}

Result<void> check_name(const std::string& name) {
  constexpr std::size_t kNameBytesMax = 128;
  const auto good = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  };
  for (const char c : name) {
    if (!good(c))
      return fail(Errc::invalid, fmt::format("--name '{}': only A-Z a-z 0-9 . _ -", name));
  }
  if (name.size() > kNameBytesMax || name.starts_with('.')) {
    return fail(Errc::invalid,
                fmt::format("--name '{}': 1..{} characters, no leading dot", name, kNameBytesMax));
  }
  return {};
}

Result<CommonOptions> common_of(const RawOptions& raw) {
  CommonOptions common;
  if (raw.json && raw.quiet) return fail(Errc::invalid, "--json and --quiet exclude each other");
  common.style = raw.json ? OutputStyle::json : raw.quiet ? OutputStyle::quiet : OutputStyle::human;
  common.verbosity = raw.verbose ? Verbosity::verbose : Verbosity::normal;
  common.run_dir = raw.run_dir.empty() ? default_run_dir() : raw.run_dir;
  if (!common.run_dir.starts_with('/')) {
    return fail(Errc::invalid, fmt::format("--run-dir '{}' is not absolute", common.run_dir));
  }
  PF_ASSIGN(common.fail_points, FailPoints::parse(raw.fail_at));
  common.store_fault_spec = raw.store_fault;
  if (!raw.store_fault.empty()) {
    PF_ASSIGN(common.store_faults, parse_storage_faults(raw.store_fault));
  }
  return common;
}

Result<BaseChoice> base_of(const RawOptions& raw, VmmKind kind) {
  if (raw.base == "none") return BaseChoice{};
  if (kind == VmmKind::qemu) {
    return fail(Errc::invalid,
                fmt::format("--base {}: QEMU sends every page and does not say which were written "
                            "since; only for hook:SOCKET",
                            raw.base));
  }
  if (raw.base == "auto") return BaseChoice{BaseChoice::Kind::automatic, {}};
  if (parse_attempt_name(raw.base)) return BaseChoice{BaseChoice::Kind::named, raw.base};
  return fail(Errc::invalid,
              fmt::format("--base '{}': auto, none, or the name of an attempt's directory on the "
                          "store (attempt.N.ID)",
                          raw.base));
}

Result<SourceOptions> source_of(const RawOptions& raw) {
  SourceOptions source;
  PF_ASSIGN(source.vm, parse_vm_address(raw.vm));
  PF_TRY(check_name(raw.name));
  source.store = raw.store;
  source.name = raw.name;
  source.bandwidth_bytes_per_s = raw.bandwidth_mib_per_s * kBytesPerMib;
  source.max_downtime = Milliseconds(raw.max_downtime_ms);
  if (raw.timeout_s != 0) source.timeout = Seconds(raw.timeout_s);
  source.timeout_action =
      raw.timeout_action == "switch" ? TimeoutAction::switch_now : TimeoutAction::abort;
  source.blackout_limit = Seconds(raw.blackout_limit_s);
  source.read_back = raw.verify ? ReadBack::yes : ReadBack::no;
  source.source_end = raw.keep_source ? SourceEnd::keep : SourceEnd::quit;
  PF_ASSIGN(source.base, base_of(raw, source.vm.kind));
  return source;
}

Result<DestinationOptions> destination_of(const RawOptions& raw) {
  DestinationOptions destination;
  PF_TRY(check_name(raw.name));
  destination.store = raw.store;
  destination.name = raw.name;
  destination.order = find_named(kPrefetchOrderNames, raw.prefetch).value();
  destination.placement = find_named(kPlacementNames, raw.placement).value();
  destination.keep = raw.keep ? KeepImage::yes : KeepImage::no;
  destination.incoming_command = raw.incoming_command;
  return destination;
}

struct Subcommands {
  CLI::App* migrate = nullptr;
  CLI::App* send = nullptr;
  CLI::App* receive = nullptr;
  CLI::App* agent = nullptr;
  CLI::App* status = nullptr;
  CLI::App* abort = nullptr;
  CLI::App* recover = nullptr;
  CLI::App* inspect = nullptr;
  CLI::App* check = nullptr;
};

void add_store_and_name(CLI::App& app, RawOptions& raw) {
  app.add_option("--store", raw.store, "directory on storage that both hosts mount")->required();
  app.add_option("--name", raw.name, "name of the VM on the store")->required();
}

// Two ways to receive: a VM from a store, or the memory of a guest that Firecracker restores. What belongs to the one excludes the other.
void add_receive(CLI::App& app, RawOptions& raw) {
  app.add_option("--store", raw.store, "directory on storage that both hosts mount");
  app.add_option("--name", raw.name, "name of the VM on the store");
  add_destination(app, raw);
  CLI::Option* const firecracker =
      app.add_option("--firecracker", raw.firecracker,
                     "serve the page faults of a Firecracker that connects to this new socket");
  for (const char* other : {"--store", "--name", "--placement", "--keep", "--incoming-command"}) {
    firecracker->excludes(app.get_option(other));
  }
  CLI::Option* const memory_file =
      app.add_option("--memory-file", raw.memory_file, "its memory: the snapshot's memory file");
  CLI::Option* const page_file =
      app.add_option("--page-file", raw.page_file, "its memory: a committed page file");
  memory_file->needs(firecracker)->excludes(page_file);
  page_file->needs(firecracker);
}

Subcommands declare(CLI::App& app, RawOptions& raw) {
  Subcommands commands;
  commands.migrate = app.add_subcommand("migrate", "the whole way, from the source host");
  add_source(*commands.migrate, raw);
  add_destination(*commands.migrate, raw);
  commands.migrate->add_option("--to", raw.to, "destination: local")->required();
  commands.migrate->add_flag("--dry-run", raw.dry_run, "check everything, touch nothing");
  commands.send = app.add_subcommand("send", "freeze half: page out, release, exit");
  add_source(*commands.send, raw);
  commands.receive = app.add_subcommand("receive", "thaw half: claim, restore, exit when resident");
  add_receive(*commands.receive, raw);
  commands.agent =
      app.add_subcommand("agent", "the destination's side, spoken to over stdin/stdout");
  commands.status =
      app.add_subcommand("status", "who owns the VM, and what a running tool is doing");
  add_store_and_name(*commands.status, raw);
  commands.status->add_flag("--watch", raw.watch, "again each second, until interrupted");
  commands.abort =
      app.add_subcommand("abort", "stop a running migration; the guest runs on at the source");
  commands.abort->add_option("--name", raw.name, "name of the VM on the store")->required();
  commands.recover = app.add_subcommand("recover", "bring a broken hand-off or restore to its end");
  add_store_and_name(*commands.recover, raw);
  add_destination(*commands.recover, raw);
  commands.recover->add_option(
      "vm", raw.vm, "the VMM, if the records do not say: qemu:QMP_SOCKET or hook:SOCKET");
  commands.inspect = app.add_subcommand("inspect", "print and prove a page file");
  commands.inspect->add_option("file", raw.file, "the page file")->required();
  commands.inspect->add_flag("--verify", raw.verify, "read every page and prove its checksum");
  commands.check = app.add_subcommand("check", "pre-flight: would a migration of this VM work");
  add_source(*commands.check, raw);
  for (CLI::App* command :
       {commands.migrate, commands.send, commands.receive, commands.agent, commands.status,
        commands.abort, commands.recover, commands.inspect, commands.check}) {
    add_common(*command, raw);
  }
  return commands;
}

Result<Command> migrate_of(const RawOptions& raw) {
  MigrateCommand command;
  PF_ASSIGN(command.common, common_of(raw));
  PF_ASSIGN(command.source, source_of(raw));
  PF_ASSIGN(command.destination, destination_of(raw));
  command.to = raw.to;
  for (const std::string& destination : raw.to) {
    if (destination != "local") {
      return fail(Errc::invalid,
                  fmt::format("--to '{}': this version knows only 'local'", destination));
    }
  }
  if (raw.to.size() != 1) {
    return fail(Errc::invalid, "--to: this version takes one destination");
  }
  command.mode = raw.dry_run ? MigrateCommand::Mode::dry_run : MigrateCommand::Mode::run;
  return Command(std::move(command));
}

Result<Command> recover_of(const RawOptions& raw) {
  RecoverCommand command;
  PF_ASSIGN(command.common, common_of(raw));
  PF_ASSIGN(command.destination, destination_of(raw));
  if (!raw.vm.empty()) {
    PF_ASSIGN(command.vm, parse_vm_address(raw.vm));
  }
  return Command(std::move(command));
}

Result<Command> firecracker_of(const RawOptions& raw) {
  FirecrackerCommand command;
  PF_ASSIGN(command.common, common_of(raw));
  command.socket = raw.firecracker;
  command.kind = raw.page_file.empty() ? MemoryFileKind::plain : MemoryFileKind::page_file;
  command.file = raw.page_file.empty() ? raw.memory_file : raw.page_file;
  if (command.file.empty()) {
    return fail(Errc::invalid, "--firecracker needs --memory-file or --page-file");
  }
  command.order = find_named(kPrefetchOrderNames, raw.prefetch).value();
  if (command.order == PrefetchOrder::recorded) {
    return fail(Errc::invalid,
                "--prefetch recorded needs a record on a store: not with --firecracker");
  }
  return Command(std::move(command));
}

Result<Command> receive_of(const RawOptions& raw) {
  if (!raw.firecracker.empty()) return firecracker_of(raw);
  ReceiveCommand command;
  PF_ASSIGN(command.common, common_of(raw));
  if (raw.store.empty()) return fail(Errc::invalid, "--store is required");
  if (raw.name.empty()) return fail(Errc::invalid, "--name is required");
  PF_ASSIGN(command.destination, destination_of(raw));
  return Command(std::move(command));
}

Result<Command> command_of(const Subcommands& commands, const RawOptions& raw) {
  if (commands.migrate->parsed()) return migrate_of(raw);
  if (commands.recover->parsed()) return recover_of(raw);
  if (commands.receive->parsed()) return receive_of(raw);
  PF_ASSIGN(CommonOptions common, common_of(raw));
  if (commands.agent->parsed()) return Command(AgentCommand{std::move(common)});
  if (commands.inspect->parsed()) {
    return Command(
        InspectCommand{std::move(common), raw.file, raw.verify ? ReadBack::yes : ReadBack::no});
  }
  PF_TRY(check_name(raw.name));
  if (commands.abort->parsed()) return Command(AbortCommand{std::move(common), raw.name});
  if (commands.status->parsed())
    return Command(
        StatusCommand{std::move(common), raw.store, raw.name,
                      raw.watch ? StatusCommand::Mode::watch : StatusCommand::Mode::once});
  PF_ASSIGN(SourceOptions source, source_of(raw));
  if (commands.check->parsed()) return Command(CheckCommand{std::move(common), std::move(source)});
  return Command(SendCommand{std::move(common), std::move(source)});
}

}  // namespace

tl::expected<Command, UsageAnswer> parse_command_line(int argc, const char* const* argv) {
  CLI::App app{"Moves a running virtual machine to another host through shared storage.",
               "pageferry"};
  app.set_version_flag("--version", "pageferry " PAGEFERRY_VERSION);
  app.require_subcommand(1);
  RawOptions raw;
  const Subcommands commands = declare(app, raw);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    const bool version = success.get_name() == "CallForVersion";
    return tl::make_unexpected(UsageAnswer{
        version ? std::string("pageferry " PAGEFERRY_VERSION "\n") : app.help(), ExitCode::done});
  } catch (const CLI::Error& error) {
    return tl::make_unexpected(
        UsageAnswer{fmt::format("pageferry: usage: {}\n", error.what()), ExitCode::usage});
  }
  auto command = command_of(commands, raw);
  if (!command) {
    return tl::make_unexpected(UsageAnswer{
        fmt::format("pageferry: usage: {}\n", command.error().message), ExitCode::usage});
  }
  return std::move(*command);
}

}  // namespace pageferry
