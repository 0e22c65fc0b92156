// Asks QMP and /proc; the order is: monitor first (it names the process), then the process.
#include "vmstate/qemu_source_vmm.h"

#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include <algorithm>

#include "vmstate/qemu_capture.h"
#include "vmstate/qemu_destination_command.h"
#include "vmstate/qemu_machine.h"
#include "vmstate/qemu_spawn.h"

namespace pageferry {
namespace {

constexpr Seconds kConnectBound{5};
constexpr Seconds kQueryBound{30};

void collect_files(const nlohmann::json& image, std::vector<std::string>& files) {
  const std::string file = image.value("filename", "");
  if (file.starts_with('/') && std::find(files.begin(), files.end(), file) == files.end()) {
    files.push_back(file);
  }
}

bool is_memory_file_system(const std::string& path) {
  struct statfs status {};
  if (::statfs(path.c_str(), &status) != 0) return true;  // not for us to say
  return status.f_type == TMPFS_MAGIC || status.f_type == HUGETLBFS_MAGIC;
}

// The destination's memory is of the same kind, and the kernel catches faults only on memory file systems.
Result<void> judge_memory_files(QmpClient& qmp, Deadline deadline, std::vector<Finding>& findings) {
  PF_ASSIGN(const nlohmann::json objects,
            qmp.execute("qom-list", {{"path", "/objects"}}, deadline));
  for (const nlohmann::json& object : objects) {
    if (object.value("type", "") != "child<memory-backend-file>") continue;
    const std::string id = object.value("name", "");
    PF_ASSIGN(
        const nlohmann::json path,
        qmp.execute("qom-get", {{"path", "/objects/" + id}, {"property", "mem-path"}}, deadline));
    if (!path.is_string() || is_memory_file_system(path.get<std::string>())) continue;
    findings.push_back(
        {Severity::refusal, "memory",
         fmt::format("memory backend {} is a file in {}, which is neither tmpfs nor hugetlbfs: no "
                     "destination can wait for its pages; use memory-backend-memfd or /dev/shm",
                     id, path.get<std::string>())});
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<QemuSourceVmm>> QemuSourceVmm::connect(const std::string& qmp_socket,
                                                              const std::string& name,
                                                              const Clock& clock) {
  PF_ASSIGN(std::unique_ptr<QmpClient> qmp,
            QmpClient::connect(qmp_socket, Deadline::after(clock, kConnectBound)));
  const auto deadline = Deadline::after(clock, kQueryBound);
  PF_ASSIGN(const nlohmann::json status,
            qmp->execute("query-status", nlohmann::json::object(), deadline));
  PF_ASSIGN(const nlohmann::json uuid,
            qmp->execute("query-uuid", nlohmann::json::object(), deadline));
  SourceFacts facts;
  facts.run_state = status.value("status", "");
  facts.running = facts.run_state == "running";
  facts.version = fmt::format("QEMU {}", qmp->qemu_version());
  facts.uuid = uuid.value("UUID", "");
  PF_ASSIGN(facts.process, read_qemu_process(qmp->peer().pid));
  facts.name = name;
  const bool has_uuid = std::any_of(facts.uuid.begin(), facts.uuid.end(),
                                    [](char c) { return c != '0' && c != '-'; });
  if (facts.name.empty() && has_uuid) facts.name = facts.uuid;
  if (facts.name.empty()) {
    return fail(Errc::invalid,
                "the VM has no UUID (-uuid); give it a name on the store with --name");
  }
  return std::unique_ptr<QemuSourceVmm>(new QemuSourceVmm(std::move(facts), std::move(qmp), clock));
}

Result<std::vector<Finding>> QemuSourceVmm::preflight(DestinationHost destination) {
  std::vector<Finding> findings;
  const VmmProcess& process = facts().process;
  if (auto libvirt = refuse_libvirt_guest(process); !libvirt) {
    findings.push_back({Severity::refusal, "libvirt", libvirt.error().message});
  }
  PF_ASSIGN(const PreflightFacts asked,
            query_preflight_facts(*qmp_, Deadline::after(clock_, kQueryBound)));
  for (Finding& finding : judge_source(asked, destination)) findings.push_back(std::move(finding));
  PF_TRY(judge_memory_files(*qmp_, Deadline::after(clock_, kQueryBound), findings));
  if (destination == DestinationHost::same) {
    PF_ASSIGN(Finding userfault,
              check_userfaultfd({process.uid, process.gid, process.groups}, asked.qemu_version));
    findings.push_back(std::move(userfault));
  }
  return findings;
}

// The command line that a destination would get; refusals name the option.
std::vector<Finding> QemuSourceVmm::judge_command() {
  std::vector<Finding> findings;
  auto machine = describe_machine(*qmp_, Deadline::after(clock_, kQueryBound));
  if (!machine) return {{Severity::refusal, "machine", machine.error().message}};
  auto argv = argv_with_hotplug(facts().process.argv, *machine);
  DestinationPlace place;
  place.run_directory = "/run/pageferry/check/check";
  place.machine_type = machine->value("machine-type", "");
  place.run_id = "check";
  place.is_directory = [](const std::string&) { return false; };
  auto command = argv ? make_destination_command(*argv, place)
                      : Result<DestinationCommand>(tl::make_unexpected(argv.error()));
  if (!command) {
    return {{Severity::warning, "command-line",
             command.error().message + " (or give --incoming-command)"}};
  }
  for (const std::string& note : command->notes) {
    findings.push_back({Severity::note, "command-line", note});
  }
  return findings;
}

Result<std::uint64_t> QemuSourceVmm::memory_bytes() {
  PF_ASSIGN(const nlohmann::json summary,
            qmp_->execute("query-memory-size-summary", nlohmann::json::object(),
                          Deadline::after(clock_, kQueryBound)));
  return summary.value("base-memory", std::uint64_t{0}) +
         summary.value("plugged-memory", std::uint64_t{0});
}

Result<std::unique_ptr<Capture>> QemuSourceVmm::make_capture(PageSink& sink,
                                                             CaptureObserver& observer,
                                                             const CaptureOptions& options) {
  PF_ASSIGN(std::unique_ptr<QemuCapture> made, QemuCapture::create(*qmp_, sink, observer, options));
  return std::unique_ptr<Capture>(std::move(made));
}

Result<void> QemuSourceVmm::describe(VmManifest& manifest) {
  manifest.qemu_version = static_cast<std::uint32_t>(qmp_->qemu_version());
  PF_ASSIGN(manifest.machine, describe_machine(*qmp_, Deadline::after(clock_, kQueryBound)));
  return {};
}

Result<std::vector<std::string>> QemuSourceVmm::differences(const nlohmann::json& destination) {
  PF_ASSIGN(const nlohmann::json machine,
            describe_machine(*qmp_, Deadline::after(clock_, kQueryBound)));
  return compare_machines(machine, destination, facts().process.working_directory);
}

Result<std::vector<std::string>> QemuSourceVmm::disk_files() {
  PF_ASSIGN(const nlohmann::json nodes, qmp_->execute("query-named-block-nodes", {{"flat", true}},
                                                      Deadline::after(clock_, kQueryBound)));
  std::vector<std::string> files;
  for (const nlohmann::json& node : nodes) {
    // Only protocol nodes name real files; format nodes repeat them.
    const std::string driver = node.value("drv", "");
    const bool on_host = driver == "file" || driver == "host_device";
    if (on_host && !node.value("ro", true)) {
      collect_files(node.value("image", nlohmann::json::object()), files);
    }
  }
  return files;
}

Result<void> QemuSourceVmm::resume(std::uint64_t) {
  PF_TRY(qmp_->execute("cont", nlohmann::json::object(), Deadline::after(clock_, kQueryBound)));
  return {};
}

Result<std::vector<HostForward>> QemuSourceVmm::host_forwards() {
  return query_host_forwards(*qmp_, Deadline::after(clock_, kQueryBound));
}

Result<void> QemuSourceVmm::end() {
  PF_TRY(end_qemu(facts().process.identity, qmp_.get(), EndBounds{}));
  return {};
}

}  // namespace pageferry
