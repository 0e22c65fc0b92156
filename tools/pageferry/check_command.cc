// check: the pre-flight of this host, this VM and this store. Touches nothing: asks the VMM, tries the store with a file that is removed
// again, and becomes its user in a child to try userfaultfd.
#include <fmt/format.h>

#include "tools/pageferry/commands.h"
#include "tools/pageferry/hand_off.h"
#include "tools/pageferry/reporter.h"
#include "transport/store_check.h"
#include "vmstate/source_vmm.h"

namespace pageferry {
namespace {

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
void add_ownership(const SourceOptions& options, const SourceFacts& vm,
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

Result<std::vector<Finding>> look(const SourceOptions& options, const Clock& clock) {
  std::vector<Finding> findings;
  add_store(options.store, findings);
  PF_ASSIGN(const std::unique_ptr<SourceVmm> vm,
            connect_source_vmm(options.vm, options.name, VmmUse::look, clock));
  const SourceFacts& facts = vm->facts();
  findings.push_back({Severity::note, "vm",
                      fmt::format("{}, pid {}, {}, {}", facts.name, facts.process.identity.pid,
                                  facts.version, facts.run_state)});
  PF_ASSIGN(std::vector<Finding> found, vm->preflight(DestinationHost::same));
  findings.insert(findings.end(), found.begin(), found.end());
  add_ownership(options, facts, findings);
  for (Finding& finding : vm->judge_command()) findings.push_back(std::move(finding));
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
