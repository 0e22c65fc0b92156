// Asks QMP and /proc; the order is: monitor first (it names the process), then the process.
#include "tools/pageferry/source_vm.h"

#include <fmt/format.h>

#include <algorithm>

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

}  // namespace

Result<SourceVm> connect_source_vm(const std::string& qmp_socket, const std::string& name,
                                   const Clock& clock) {
  SourceVm vm;
  PF_ASSIGN(vm.qmp, QmpClient::connect(qmp_socket, Deadline::after(clock, kConnectBound)));
  const auto deadline = Deadline::after(clock, kQueryBound);
  PF_ASSIGN(const nlohmann::json status,
            vm.qmp->execute("query-status", nlohmann::json::object(), deadline));
  vm.run_state = status.value("status", "");
  PF_ASSIGN(const nlohmann::json uuid,
            vm.qmp->execute("query-uuid", nlohmann::json::object(), deadline));
  vm.uuid = uuid.value("UUID", "");
  PF_ASSIGN(vm.process, read_qemu_process(vm.qmp->peer().pid));
  vm.name = name;
  const bool has_uuid =
      std::any_of(vm.uuid.begin(), vm.uuid.end(), [](char c) { return c != '0' && c != '-'; });
  if (vm.name.empty() && has_uuid) vm.name = vm.uuid;
  if (vm.name.empty()) {
    return fail(Errc::invalid,
                "the VM has no UUID (-uuid); give it a name on the store with --name");
  }
  return vm;
}

Result<std::vector<Finding>> preflight_source_vm(SourceVm& vm, DestinationHost destination,
                                                 const Clock& clock) {
  std::vector<Finding> findings;
  if (auto libvirt = refuse_libvirt_guest(vm.process); !libvirt) {
    findings.push_back({Severity::refusal, "libvirt", libvirt.error().message});
  }
  PF_ASSIGN(const PreflightFacts facts,
            query_preflight_facts(*vm.qmp, Deadline::after(clock, kQueryBound)));
  for (Finding& finding : judge_source(facts, destination)) findings.push_back(std::move(finding));
  if (destination == DestinationHost::same) {
    PF_ASSIGN(
        Finding userfault,
        check_userfaultfd({vm.process.uid, vm.process.gid, vm.process.groups}, facts.qemu_version));
    findings.push_back(std::move(userfault));
  }
  return findings;
}

Result<std::vector<std::string>> writable_disk_files(QmpClient& qmp, Deadline deadline) {
  PF_ASSIGN(const nlohmann::json nodes,
            qmp.execute("query-named-block-nodes", {{"flat", true}}, deadline));
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

}  // namespace pageferry
