// A capability that is on and unknown to us is refused: it might change the stream. That list will
// grow with QEMU; the other choice, to switch off what the user switched on, would take a promise
// away silently. Only those that promise nothing to a capture are switched off while it lasts.
#include "vmstate/qemu_source_settings.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "vmstate/qmp_fields.h"

namespace pageferry {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 3> kNeeded = {"return-path", "events",
                                                     "pause-before-switchover"};
// The first two slow the guest down for as long as we hold it. The postcopy ones change the stream,
// but promise nothing in a migration that never becomes one; a QEMU that was a destination itself
// may still have them.
constexpr std::array<std::string_view, 4> kSwitchedOff = {"auto-converge", "dirty-limit",
                                                          "postcopy-ram", "postcopy-preempt"};
// They change neither the stream nor when the guest stops.
constexpr std::array<std::string_view, 9> kHarmless = {"return-path",
                                                       "events",
                                                       "pause-before-switchover",
                                                       "switchover-ack",
                                                       "late-block-activate",
                                                       "validate-uuid",
                                                       "zero-blocks",
                                                       "release-ram",
                                                       "postcopy-blocktime"};

template <typename List>
bool contains(const List& list, std::string_view name) {
  return std::find(list.begin(), list.end(), name) != list.end();
}

// Statuses of query-migrate in which no migration is under way.
bool is_idle(const std::string& status) {
  return status.empty() || status == "none" || status == "completed" || status == "failed" ||
         status == "cancelled";
}

}  // namespace

Result<QemuSourceSettings> QemuSourceSettings::read(QmpClient& qmp, const Clock& clock) {
  QemuSourceSettings settings(qmp, clock);
  PF_TRY(settings.check_no_migration());
  PF_TRY(settings.check_run_state());
  PF_TRY(settings.read_capabilities());
  PF_TRY(settings.read_parameters());
  PF_TRY(settings.check_machine());
  return settings;
}

Result<json> QemuSourceSettings::execute(const char* command, json arguments) {
  return qmp_->execute(command, std::move(arguments), Deadline::after(*clock_, kQmpCommandBound));
}

Result<void> QemuSourceSettings::check_run_state() {
  PF_ASSIGN(const json status, execute("query-status", json::object()));
  const std::string state = text_field(status, "status");
  guest_running_ = state == "running";
  if (state == "running" || state == "paused" || state == "prelaunch") return {};
  if (state == "postmigrate") {
    // Where a migration of a paused guest failed, older versions (7.2) leave this state behind and
    // refuse to migrate from it.
    return fail(
        Errc::vmm,
        migration_completed_
            ? "the guest is in run state \"postmigrate\": it was migrated before, this QEMU "
              "only holds what is left"
            : "the guest is in run state \"postmigrate\" after a migration that failed: "
              "continue it once (cont) before it is moved");
  }
  return fail(
      Errc::vmm,
      fmt::format("the guest is in run state \"{}\", it can be moved when it is running or paused",
                  state));
}

Result<void> QemuSourceSettings::check_no_migration() {
  PF_ASSIGN(const json migration, execute("query-migrate", json::object()));
  const std::string status = text_field(migration, "status");
  migration_completed_ = status == "completed";
  if (!is_idle(status)) {
    return fail(
        Errc::busy,
        fmt::format("a migration of this guest is already under way (status \"{}\")", status));
  }
  if (!migration.contains("blocked-reasons")) return {};
  std::string text;
  for (const json& reason : migration["blocked-reasons"]) {
    if (!text.empty()) text += "; ";
    text += reason.is_string() ? reason.get<std::string>() : reason.dump();
  }
  if (text.empty()) return {};
  return fail(Errc::vmm, "QEMU says that this guest cannot be migrated: " + text);
}

Result<void> QemuSourceSettings::read_capabilities() {
  PF_ASSIGN(const json list, execute("query-migrate-capabilities", json::object()));
  if (!list.is_array())
    return fail(Errc::vmm, "query-migrate-capabilities: the answer is not a list");
  for (const json& entry : list) {
    const std::string name = text_field(entry, "capability");
    if (name.empty() || !entry.contains("state") || !entry["state"].is_boolean()) continue;
    capabilities_[name] = entry["state"].get<bool>();
  }
  for (const std::string_view name : kNeeded) {
    if (!capabilities_.contains(std::string(name))) {
      return fail(Errc::unsupported,
                  fmt::format("this QEMU has no migration capability \"{}\"", name));
    }
  }
  for (const auto& [name, on] : capabilities_) {
    if (on && !contains(kHarmless, name) && !contains(kSwitchedOff, name)) {
      return fail(
          Errc::unsupported,
          fmt::format(
              "migration capability \"{}\" is on at the source: switch it off to move this guest",
              name));
    }
  }
  return {};
}

Result<void> QemuSourceSettings::read_parameters() {
  PF_ASSIGN(parameters_, execute("query-migrate-parameters", json::object()));
  if (!parameters_.is_object())
    return fail(Errc::vmm, "query-migrate-parameters: the answer is not an object");
  if (const std::string tls = text_field(parameters_, "tls-creds"); !tls.empty()) {
    return fail(Errc::unsupported, fmt::format("migration parameter tls-creds is \"{}\" at the "
                                               "source: an encrypted stream cannot be captured",
                                               tls));
  }
  if (const std::string mode = text_field(parameters_, "mode"); !mode.empty() && mode != "normal") {
    return fail(
        Errc::unsupported,
        fmt::format("migration parameter mode is \"{}\" at the source, must be \"normal\"", mode));
  }
  return {};
}

// Without QEMU's description the end of the device state cannot be found.
Result<void> QemuSourceSettings::check_machine() {
  const auto suppressed =
      execute("qom-get", {{"path", "/machine"}, {"property", "suppress-vmdesc"}});
  if (suppressed && suppressed->is_boolean() && suppressed->get<bool>()) {
    return fail(Errc::unsupported,
                "the machine was started with suppress-vmdesc=on: QEMU does not describe its "
                "device state, so it cannot be captured");
  }
  return {};
}

Result<void> QemuSourceSettings::set_capabilities(const std::map<std::string, bool>& wanted) {
  json list = json::array();
  for (const auto& [name, on] : wanted) list.push_back({{"capability", name}, {"state", on}});
  if (list.empty()) return {};
  PF_TRY(execute("migrate-set-capabilities", {{"capabilities", list}}));
  return {};
}

Result<void> QemuSourceSettings::apply() {
  std::map<std::string, bool> wanted;
  const auto want = [&](std::string_view name, bool on) {
    const auto found = capabilities_.find(std::string(name));
    if (found == capabilities_.end() || found->second == on) return;
    wanted[found->first] = on;
    changed_capabilities_[found->first] = found->second;
  };
  for (const std::string_view name : kNeeded) want(name, true);
  for (const std::string_view name : kSwitchedOff) want(name, false);
  want("switchover-ack", true);
  return set_capabilities(wanted);
}

Result<void> QemuSourceSettings::set_parameters(const json& values) {
  for (const auto& [name, value] : values.items()) {
    const auto before = parameters_.find(name);
    if (before != parameters_.end()) changed_parameters_.emplace(name, *before);
  }
  PF_TRY(execute("migrate-set-parameters", values));
  return {};
}

Result<void> QemuSourceSettings::restore() {
  if (!changed_parameters_.empty()) {
    json values = json::object();
    for (const auto& [name, value] : changed_parameters_) values[name] = value;
    PF_TRY(execute("migrate-set-parameters", values));
    changed_parameters_.clear();
  }
  PF_TRY(set_capabilities(changed_capabilities_));
  changed_capabilities_.clear();
  return {};
}

}  // namespace pageferry
