// SourceVm: the running VM that the user named: its monitor, its process, its name on the store,
// its disks. Looks, touches nothing.
//
// Thread rule: one thread at a time. Lifetime: owns the connection to the monitor.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/qemu_preflight.h"
#include "vmstate/qemu_process.h"
#include "vmstate/qmp_client.h"

namespace pageferry {

struct SourceVm {
  std::unique_ptr<QmpClient> qmp;
  QemuProcess process;
  std::string name;       // --name, else the UUID
  std::string uuid;       // all zeros when QEMU was given none
  std::string run_state;  // query-status
  bool running() const { return run_state == "running"; }
};

// Connects and asks who it is. Errors: those of QmpClient::connect and read_qemu_process; invalid
// when there is neither --name nor a UUID.
Result<SourceVm> connect_source_vm(const std::string& qmp_socket, const std::string& name,
                                   const Clock& clock);

// Everything that speaks against moving it: its own state and devices, libvirt, userfaultfd for its
// user.
Result<std::vector<Finding>> preflight_source_vm(SourceVm& vm, DestinationHost destination,
                                                 const Clock& clock);

// The files of all images that are open now and can be written, from a describe_machine() object's
// or query-block's view.
Result<std::vector<std::string>> writable_disk_files(QmpClient& qmp, Deadline deadline);

}  // namespace pageferry
