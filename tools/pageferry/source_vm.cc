// Asks QMP and /proc; the order is: monitor first (it names the process), then the process.
#include "tools/pageferry/source_vm.h"

#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/vfs.h>

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
  PF_TRY(judge_memory_files(*vm.qmp, Deadline::after(clock, kQueryBound), findings));
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
