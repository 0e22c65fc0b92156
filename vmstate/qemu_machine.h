// QemuMachine: what a running QEMU is made of, asked through QMP, in a form that two QEMUs can be
// compared by: machine type, CPUs and their features, memory, RAM blocks, devices, disks as they
// are open now. It is one JSON object (docs/manifest-format.md names its members), kept in the
// manifest.
//
// Only queries are used; the guest is not touched.
//
// Thread rule: functions without state; the QmpClient is used by one command at a time.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/qmp_client.h"

namespace pageferry {

// Asks for all of it. Errors: vmm, gone, timeout; unsupported (a machine without a versioned type,
// which no other QEMU can be started as).
Result<nlohmann::json> describe_machine(QmpClient& qmp, Deadline deadline);

// The versioned type ("pc-q35-7.2") alone.
Result<std::string> query_machine_type(QmpClient& qmp, Deadline deadline);

// The devices that were asked for, by option or at run time: [{"id" (if any), "path", "type", "hotplugged", "properties"}].
Result<nlohmann::json> query_devices(QmpClient& qmp, Deadline deadline);

// Differences that matter to the guest, in plain words, "source has ..., destination has ...".
// Empty = the destination may take the guest. Both machines come from describe_machine() or a
// manifest; a malformed one is a difference. Names of images that are relative (QEMU gives names
// back as it was told them) count from `working_directory`, which both QEMUs have.
std::vector<std::string> compare_machines(const nlohmann::json& source,
                                          const nlohmann::json& destination,
                                          const std::string& working_directory);

// What was changed in the source since it started, as changes to its own argv: hot-plugged DIMMs, CPUs and common devices are appended,
// unplugged devices with an id are taken out, drives with an id get the image that is on top now. Idempotent. Errors: unsupported, naming
// the hot-plugged device that cannot be written as an option by this program.
Result<std::vector<std::string>> argv_with_hotplug(const std::vector<std::string>& argv,
                                                   const nlohmann::json& machine);

}  // namespace pageferry
