// The rules of the pre-flight, one function per subject. Each refusal says what is wrong, why it stands in the way, and where there is one,
// the way out.
#include "vmstate/qemu_preflight.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "vmstate/qemu_machine.h"

namespace pageferry {
namespace {

using nlohmann::json;
using Findings = std::vector<Finding>;

void refuse(Findings& findings, std::string subject, std::string text) {
  findings.push_back({Severity::refusal, std::move(subject), std::move(text)});
}

std::string text_in(const json& object, const char* key) {
  if (!object.is_object()) return "";
  const auto value = object.find(key);
  return value != object.end() && value->is_string() ? value->get<std::string>() : "";
}

bool flag_in(const json& object, const char* key) {
  if (!object.is_object()) return false;
  const auto value = object.find(key);
  return value != object.end() && value->is_boolean() && value->get<bool>();
}

const json& object_in(const json& object, const char* key) {
  static const json kEmpty = json::object();
  if (!object.is_object()) return kEmpty;
  const auto value = object.find(key);
  return value != object.end() && value->is_object() ? *value : kEmpty;
}

const json& list_or_empty(const json& value) {
  static const json kEmpty = json::array();
  return value.is_array() ? value : kEmpty;
}

// --- capabilities ---

struct Reason {
  std::string_view name;
  std::string_view why;
};

constexpr std::array<Reason, 11> kForeignStream = {{
    {"multifd", "pages would travel on connections of their own"},
    {"xbzrle", "pages would be sent as differences to what a destination holds"},
    {"compress", "pages would be compressed in a form that later versions dropped"},
    {"dirty-bitmaps", "bitmaps would be sent as a section of their own"},
    {"block", "disks would be sent within the stream"},
    {"x-colo", "two guests would run in lock-step"},
    {"background-snapshot", "the guest would not be stopped"},
    {"rdma-pin-all", "memory would be sent by RDMA"},
    {"x-ignore-shared", "shared memory would be left out of the stream"},
    {"mapped-ram", "pages would be written at fixed places of a file"},
    {"zero-copy-send", "it needs multifd"},
}};
// They change neither the stream nor when the guest stops, or are switched off while the guest is captured.
constexpr std::array<std::string_view, 13> kTolerated = {"return-path",
                                                         "events",
                                                         "pause-before-switchover",
                                                         "switchover-ack",
                                                         "late-block-activate",
                                                         "validate-uuid",
                                                         "zero-blocks",
                                                         "release-ram",
                                                         "postcopy-blocktime",
                                                         "auto-converge",
                                                         "dirty-limit",
                                                         "postcopy-ram",
                                                         "postcopy-preempt"};
constexpr std::array<std::string_view, 4> kNeeded = {"return-path", "postcopy-ram",
                                                     "pause-before-switchover", "events"};

void judge_capabilities(const json& capabilities, Findings& findings) {
  std::vector<std::string> known;
  for (const json& entry : list_or_empty(capabilities)) {
    const std::string name = text_in(entry, "capability");
    known.push_back(name);
    if (!flag_in(entry, "state") ||
        std::find(kTolerated.begin(), kTolerated.end(), name) != kTolerated.end())
      continue;
    const auto foreign = std::find_if(kForeignStream.begin(), kForeignStream.end(),
                                      [&name](const Reason& r) { return r.name == name; });
    refuse(findings, "capability",
           fmt::format(
               "migration capability {} is on: {}; switch it off (migrate-set-capabilities)", name,
               foreign != kForeignStream.end()
                   ? foreign->why
                   : "this program does not know what it does to the stream"));
  }
  for (const std::string_view name : kNeeded) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    refuse(findings, "qemu",
           fmt::format("this QEMU has no migration capability {}, which is needed", name));
  }
}

void judge_parameters(const json& parameters, Findings& findings) {
  if (const std::string tls = text_in(parameters, "tls-creds"); !tls.empty()) {
    refuse(findings, "parameter",
           fmt::format("migration parameter tls-creds is \"{}\": an encrypted stream cannot be "
                       "read; set it to \"\"",
                       tls));
  }
  if (const std::string mode = text_in(parameters, "mode"); !mode.empty() && mode != "normal") {
    refuse(findings, "parameter",
           fmt::format("migration parameter mode is \"{}\", must be normal", mode));
  }
}

// --- state ---

void judge_status(const json& status, const json& migration, Findings& findings) {
  static constexpr std::array<std::string_view, 3> kMovable = {"running", "paused", "prelaunch"};
  const std::string state = text_in(status, "status");
  const std::string phase = text_in(migration, "status");
  if (std::find(kMovable.begin(), kMovable.end(), state) == kMovable.end()) {
    std::string why = "it can be moved when it is running or paused";
    if (state == "postmigrate") {
      why = phase == "completed"
                ? "it was migrated before, this QEMU only holds what is left (see recover)"
                : "a migration of it failed: continue it once (cont) before it is moved";
    }
    if (state == "inmigrate") why = "this QEMU waits for a guest itself";
    if (state == "io-error") why = "it stopped on a disk error: repair that and continue it first";
    if (state == "suspended") why = "it sleeps: wake it first (system_wakeup)";
    refuse(findings, "run-state",
           fmt::format("the guest is in run state {}: {}", state.empty() ? "?" : state, why));
  }
  static constexpr std::array<std::string_view, 5> kIdle = {"", "none", "completed", "failed",
                                                            "cancelled"};
  if (std::find(kIdle.begin(), kIdle.end(), phase) == kIdle.end()) {
    refuse(findings, "migration",
           fmt::format("a migration of this guest is under way already (status {})", phase));
  }
  if (!migration.is_object() || !migration.contains("blocked-reasons")) return;
  for (const json& reason : list_or_empty(migration["blocked-reasons"])) {
    refuse(findings, "blocker",
           fmt::format("QEMU says: {}",
                       reason.is_string() ? reason.get<std::string>() : reason.dump()));
  }
}

// --- devices ---

constexpr std::array<Reason, 9> kForeignDevices = {{
    {"vfio-", "a host device cannot be moved"},
    {"vhost-user-", "its back-end process would serve both QEMUs at once"},
    {"virtio-mem", "memory that comes and goes while pages are read is not supported"},
    {"virtio-pmem", "its backing file would be written by both QEMUs"},
    {"nvdimm", "its backing file would be written by both QEMUs"},
    {"ivshmem", "its memory is shared with other processes"},
    {"vhost-scsi", "its back end in the kernel belongs to this QEMU"},
    {"x-pci-proxy-dev", "its back end is another process"},
    {"xen-", "Xen domains cannot be moved"},
}};

void judge_devices(const json& devices, Findings& findings) {
  for (const json& device : list_or_empty(devices)) {
    const std::string type = text_in(device, "type");
    const std::string name =
        device.contains("id") ? text_in(device, "id") : text_in(device, "path");
    const auto foreign =
        std::find_if(kForeignDevices.begin(), kForeignDevices.end(),
                     [&type](const Reason& r) { return type.starts_with(r.name); });
    if (foreign != kForeignDevices.end())
      refuse(findings, "device", fmt::format("device {} is a {}: {}", name, type, foreign->why));
    if (type.starts_with("virtio-balloon") &&
        flag_in(object_in(device, "properties"), "free-page-hint")) {
      refuse(findings, "device",
             fmt::format("device {} has free-page-hint=on: pages that the guest calls free would "
                         "be missing from the image; start it "
                         "with free-page-hint=off",
                         name));
    }
    if (type == "usb-host") {
      findings.push_back(
          {Severity::warning, "device",
           fmt::format("device {} is a {}: the guest will see it unplugged", name, type)});
    }
  }
}

void judge_tpm(const json& tpm, Findings& findings) {
  for (const json& entry : list_or_empty(tpm)) {
    const std::string type = text_in(object_in(entry, "options"), "type");
    refuse(findings, "device",
           fmt::format("TPM {} ({}): {}", text_in(entry, "id"), type,
                       type == "emulator" ? "its swtpm process would serve both QEMUs at once"
                                          : "a host TPM cannot be moved"));
  }
}

void judge_memory_devices(const json& memory_devices, Findings& findings) {
  for (const json& entry : list_or_empty(memory_devices)) {
    const std::string type = text_in(entry, "type");
    if (type == "dimm") continue;
    const std::string id = text_in(object_in(entry, "data"), "id");
    refuse(findings, "memory",
           fmt::format("memory device {} is a {}: only DIMMs can be moved", id, type));
  }
}

// --- disks ---

void judge_disks(const json& block, DestinationHost destination, Findings& findings) {
  for (const json& entry : list_or_empty(block)) {
    if (!entry.is_object() || !entry.contains("inserted")) continue;
    const json& inserted = object_in(entry, "inserted");
    const bool direct = flag_in(object_in(inserted, "cache"), "direct");
    if (flag_in(inserted, "ro") || direct) continue;
    const std::string device = text_in(entry, "device");
    const std::string name = device.empty() ? text_in(entry, "qdev") : device;
    if (destination == DestinationHost::other) {
      refuse(findings, "disk",
             fmt::format("disk {} ({}) is not cache.direct=on: another host could read what is not "
                         "written yet, and "
                         "keep what is old (use cache=none)",
                         name, text_in(inserted, "file")));
    } else {
      findings.push_back({Severity::warning, "disk",
                          fmt::format("disk {} ({}) is not cache.direct=on: it can move on this "
                                      "host, but to no other (use cache=none)",
                                      name, text_in(inserted, "file"))});
    }
  }
}

void judge_block_jobs(const json& jobs, Findings& findings) {
  for (const json& job : list_or_empty(jobs)) {
    refuse(findings, "disk",
           fmt::format("block job {} ({}) is running: wait for it or cancel it",
                       text_in(job, "device"), text_in(job, "type")));
  }
}

// A command that this QEMU does not have gives null.
Result<json> ask(QmpClient& qmp, std::string_view command, Deadline deadline) {
  auto reply = qmp.execute(command, json::object(), deadline);
  if (!reply && reply.error().code == Errc::vmm) return json();
  return reply;
}

}  // namespace

bool has_refusal(const Findings& findings) {
  return std::any_of(findings.begin(), findings.end(),
                     [](const Finding& f) { return f.severity == Severity::refusal; });
}

std::string refusal_text(const Findings& findings) {
  std::string text;
  for (const Finding& finding : findings) {
    if (finding.severity != Severity::refusal) continue;
    text += (text.empty() ? "" : "; ") + finding.text;
  }
  return text;
}

Result<PreflightFacts> query_preflight_facts(QmpClient& qmp, Deadline deadline) {
  PreflightFacts facts;
  facts.qemu_version = qmp.qemu_version();
  PF_ASSIGN(facts.capabilities, ask(qmp, "query-migrate-capabilities", deadline));
  PF_ASSIGN(facts.migration, ask(qmp, "query-migrate", deadline));
  PF_ASSIGN(facts.parameters, ask(qmp, "query-migrate-parameters", deadline));
  PF_ASSIGN(facts.status, ask(qmp, "query-status", deadline));
  PF_ASSIGN(facts.tpm, ask(qmp, "query-tpm", deadline));
  PF_ASSIGN(facts.block, ask(qmp, "query-block", deadline));
  PF_ASSIGN(facts.block_jobs, ask(qmp, "query-block-jobs", deadline));
  PF_ASSIGN(facts.memory_devices, ask(qmp, "query-memory-devices", deadline));
  PF_ASSIGN(facts.devices, query_devices(qmp, deadline));
  auto type = query_machine_type(qmp, deadline);
  if (type) {
    facts.machine_type = std::move(*type);
  } else if (type.error().code != Errc::unsupported) {
    return tl::make_unexpected(type.error());
  }
  return facts;
}

Findings judge_source(const PreflightFacts& facts, DestinationHost destination) {
  Findings findings;
  findings.push_back(
      {Severity::note, "qemu",
       fmt::format("QEMU {}.{}.{}, machine type {}", facts.qemu_version / 10000,
                   facts.qemu_version / 100 % 100, facts.qemu_version % 100,
                   facts.machine_type.empty() ? "without version" : facts.machine_type)});
  if (facts.machine_type.empty()) {
    refuse(findings, "machine-type",
           "the machine type has no version: no other QEMU can be started as exactly the same "
           "machine");
  }
  judge_status(facts.status, facts.migration, findings);
  judge_capabilities(facts.capabilities, findings);
  judge_parameters(facts.parameters, findings);
  judge_devices(facts.devices, findings);
  judge_tpm(facts.tpm, findings);
  judge_memory_devices(facts.memory_devices, findings);
  judge_disks(facts.block, destination, findings);
  judge_block_jobs(facts.block_jobs, findings);
  return findings;
}

}  // namespace pageferry
