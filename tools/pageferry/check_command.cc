// check: the pre-flight of this host, this VM and this store. Touches nothing: asks QEMU, tries the store with a file that is removed
// again, and becomes QEMU's user in a child to try userfaultfd.
#include <fmt/format.h>

#include "tools/pageferry/commands.h"
#include "tools/pageferry/hand_off.h"
#include "tools/pageferry/reporter.h"
#include "tools/pageferry/source_vm.h"
#include "transport/store_check.h"
#include "vmstate/qemu_machine.h"

namespace pageferry {
namespace {

constexpr Seconds kQueryBound{30};

std::string_view severity_name(Severity severity) {
  switch (severity) {
    case Severity::note:
      return "ok";
    case Severity::warning:
      return "warning";
    case Severity::refusal:
      return "refused";
  }
  return "";
}

Severity severity_of(StoreSeverity severity) {
  switch (severity) {
    case StoreSeverity::note:
      return Severity::note;
    case StoreSeverity::warning:
      return Severity::warning;
    case StoreSeverity::refusal:
      return Severity::refusal;
  }
  return Severity::refusal;
}

void add_store(const std::string& path, std::vector<Finding>& findings) {
  const StoreReport store = check_store(path);
  for (const StoreFinding& finding : store.findings) {
    findings.push_back({severity_of(finding.severity), "store", finding.message});
  }
  if (!store.usable()) return;
  findings.push_back({Severity::note, "store",
                      fmt::format("{} on {}: {} MiB free, {}, a write with fdatasync takes {} us",
                                  path, store.mount.fs_type, store.free_bytes >> 20,
                                  store.io_mode == IoMode::direct ? "O_DIRECT" : "buffered",
                                  store.sync_ns / 1000)});
}

// Who owns it, as far as the store says.
void add_ownership(const SourceOptions& options, const SourceVm& vm,
                   std::vector<Finding>& findings) {
  const CancelSignal stop;
  auto hand_off = HandOff::open(options.store, vm.name, VmDirectory::IfMissing::refuse, stop);
  if (!hand_off) {
    if (hand_off.error().code != Errc::not_found) {
      findings.push_back({Severity::refusal, "ownership", hand_off.error().message});
    }
    return;
  }
  auto snapshot = (*hand_off)->read();
  if (!snapshot) {
    findings.push_back({Severity::refusal, "ownership", snapshot.error().message});
    return;
  }
  const Standing standing = standing_of(vm.process.identity, *snapshot, (*hand_off)->host());
  if (standing.kind == Standing::Kind::refused) {
    findings.push_back({Severity::refusal, "ownership", standing.reason});
  } else {
    findings.push_back({Severity::note, "ownership",
                        fmt::format("this VMM may migrate from epoch {}", raw(standing.epoch))});
  }
}

// The command line that a destination would get; refusals name the option.
void add_command_line(SourceVm& vm, const Clock& clock, std::vector<Finding>& findings) {
  auto machine = describe_machine(*vm.qmp, Deadline::after(clock, kQueryBound));
  if (!machine) {
    findings.push_back({Severity::refusal, "machine", machine.error().message});
    return;
  }
  auto argv = argv_with_hotplug(vm.process.argv, *machine);
  DestinationPlace place;
  place.run_directory = "/run/pageferry/check/check";
  place.machine_type = machine->value("machine-type", "");
  place.run_id = "check";
  place.is_directory = [](const std::string&) { return false; };
  auto command = argv ? make_destination_command(*argv, place)
                      : Result<DestinationCommand>(tl::make_unexpected(argv.error()));
  if (!command) {
    findings.push_back({Severity::warning, "command-line",
                        command.error().message + " (or give --incoming-command)"});
    return;
  }
  for (const std::string& note : command->notes) {
    findings.push_back({Severity::note, "command-line", note});
  }
}

Result<std::vector<Finding>> look(const SourceOptions& options, const Clock& clock) {
  std::vector<Finding> findings;
  add_store(options.store, findings);
  PF_ASSIGN(SourceVm vm, connect_source_vm(options.vm_socket, options.name, clock));
  findings.push_back({Severity::note, "vm",
                      fmt::format("{}, pid {}, QEMU {}, {}", vm.name, vm.process.identity.pid,
                                  vm.qmp->qemu_version(), vm.run_state)});
  PF_ASSIGN(std::vector<Finding> found, preflight_source_vm(vm, DestinationHost::same, clock));
  findings.insert(findings.end(), found.begin(), found.end());
  add_ownership(options, vm, findings);
  add_command_line(vm, clock, findings);
  return findings;
}

}  // namespace

ExitCode run_check(const CheckCommand& command, const Clock& clock) {
  Reporter reporter(command.common.style, command.common.verbosity, clock);
  auto findings = look(command.source, clock);
  if (!findings) {
    reporter.error(findings.error());
    return ExitCode::refused;
  }
  nlohmann::json list = nlohmann::json::array();
  for (const Finding& finding : *findings) {
    list.push_back({{"severity", severity_name(finding.severity)},
                    {"subject", finding.subject},
                    {"text", finding.text}});
    if (command.common.style == OutputStyle::human) {
      fmt::print(stdout, "{:<8} {:<13} {}\n", severity_name(finding.severity), finding.subject,
                 finding.text);
    }
  }
  const ExitCode code = has_refusal(*findings) ? ExitCode::refused : ExitCode::done;
  nlohmann::json result = nlohmann::json::object();
  if (command.common.style == OutputStyle::json) result["findings"] = std::move(list);
  reporter.finish(std::move(result), code);
  return code;
}

}  // namespace pageferry
