// The greeting of a monitor comes only when no other client holds it, and by then QEMU has dropped
// what an earlier client had asked: a look after connecting is a look at a VMM with no command of a
// dead tool pending.
#include "tools/pageferry/vmm_look.h"

#include <fmt/format.h>

#include <map>

#include "vmstate/qemu_destination_command.h"
#include "vmstate/qemu_process.h"

namespace pageferry {
namespace {

constexpr Seconds kConnectBound{5};

std::string resolved(const std::string& path, const std::string& working_directory) {
  return path.starts_with('/') ? path : working_directory + "/" + path;
}

// The value of key= in an option string, or "".
std::string value_of(const std::string& option, const std::string& key) {
  const std::string wanted = key + "=";
  std::size_t start = 0;
  while (start <= option.size()) {
    const std::size_t end = std::min(option.find(',', start), option.size());
    const std::string part = option.substr(start, end - start);
    if (part.starts_with(wanted)) return part.substr(wanted.size());
    start = end + 1;
  }
  return "";
}

}  // namespace

std::vector<std::string> monitor_sockets_of(const std::vector<std::string>& argv,
                                            const std::string& working_directory) {
  std::vector<std::string> sockets;
  std::map<std::string, std::string> chardev_paths;
  for (std::size_t i = 0; i + 1 < argv.size(); ++i) {
    const std::string& value = argv[i + 1];
    const std::string option = argv[i].starts_with("--") ? argv[i].substr(1) : argv[i];
    if (option == "-chardev" && value.starts_with("socket,")) {
      chardev_paths[value_of(value, "id")] = value_of(value, "path");
    }
    if ((option == "-qmp" || option == "-qmp-pretty") && value.starts_with("unix:")) {
      sockets.push_back(resolved(value.substr(5, value.find(',') - 5), working_directory));
    }
  }
  for (std::size_t i = 0; i + 1 < argv.size(); ++i) {
    const std::string& value = argv[i + 1];
    if (argv[i] != "-mon" || value_of(value, "mode") != "control") continue;
    const std::string id = value_of(value, "chardev");
    const std::string named = id.empty() ? value.substr(0, value.find(',')) : id;
    if (named == kOurOutOfBandChardev) continue;
    const auto found = chardev_paths.find(named);
    if (found != chardev_paths.end() && !found->second.empty()) {
      sockets.push_back(resolved(found->second, working_directory));
    }
  }
  return sockets;
}

VmmState vmm_state_of(const std::string& qemu_status) {
  if (qemu_status == "inmigrate") return VmmState::incoming;
  if (qemu_status == "finish-migrate" || qemu_status == "save-vm") return VmmState::finishing;
  if (qemu_status == "postmigrate") return VmmState::post_migrate;
  if (qemu_status == "paused" || qemu_status == "prelaunch" || qemu_status == "suspended") {
    return VmmState::paused;
  }
  return VmmState::running;
}

VmmLook look_of(const HookLook& hook) {
  VmmLook look;
  look.view.process = hook.process;
  look.view.state = vmm_state_of(hook);
  look.hook = hook;
  return look;
}

Result<VmmLook> look_at_vmm(const ProcessIdentity& process, const std::string& preferred_socket,
                            const Clock& clock) {
  VmmLook look;
  PF_ASSIGN(const bool alive, is_alive(process));
  if (!alive) return look;
  look.view.process = process;
  PF_ASSIGN(const VmmProcess qemu, read_qemu_process(process.pid));
  auto sockets = monitor_sockets_of(qemu.argv, qemu.working_directory);
  // Our own monitor socket stands last on the command lines that we make.
  if (!preferred_socket.empty()) sockets.push_back(preferred_socket);
  Error last{Errc::not_found, 0,
             fmt::format("QEMU pid {} has no monitor on a unix socket", process.pid)};
  for (auto socket = sockets.rbegin(); socket != sockets.rend() && !look.qmp; ++socket) {
    auto qmp = QmpClient::connect(*socket, Deadline::after(clock, kConnectBound));
    if (!qmp) {
      last = qmp.error();
    } else if ((*qmp)->peer().pid == process.pid) {
      look.qmp = std::move(*qmp);
    }
  }
  if (!look.qmp) return tl::make_unexpected(last);
  const auto deadline = Deadline::after(clock, kVmmQueryBound);
  PF_ASSIGN(const nlohmann::json status,
            look.qmp->execute("query-status", nlohmann::json::object(), deadline));
  PF_ASSIGN(const nlohmann::json migration,
            look.qmp->execute("query-migrate", nlohmann::json::object(), deadline));
  look.view.state = vmm_state_of(status.value("status", ""));
  look.migration_status = migration.value("status", "");
  return look;
}

}  // namespace pageferry
