// Preflight: what speaks against moving this guest, found before anything is touched. Only queries
// are used.
//
// Thread rule: functions without state.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/qemu_destination_command.h"
#include "vmstate/qmp_client.h"

namespace pageferry {

enum class Severity : std::uint8_t {
  note,     // worth knowing
  warning,  // works, but not as well or as safely as it could
  refusal,  // the guest is not moved
};

struct Finding {
  Severity severity = Severity::note;
  std::string subject;  // short and stable: "capability", "device", "run-state", "disk",
                        // "userfaultfd", "qemu", ...
  std::string text;     // one line
};

bool has_refusal(const std::vector<Finding>& findings);
// All refusals in one line, joined by "; ".
std::string refusal_text(const std::vector<Finding>& findings);

// The answers a verdict is made from. Members are QMP replies as they came; null where the QEMU
// does not know the command.
struct PreflightFacts {
  int qemu_version = 0;
  nlohmann::json capabilities;    // query-migrate-capabilities
  nlohmann::json migration;       // query-migrate
  nlohmann::json parameters;      // query-migrate-parameters
  nlohmann::json status;          // query-status
  nlohmann::json tpm;             // query-tpm
  nlohmann::json block;           // query-block
  nlohmann::json block_jobs;      // query-block-jobs
  nlohmann::json memory_devices;  // query-memory-devices
  nlohmann::json devices;         // query_devices()
  std::string machine_type;       // "" if it has no version
};

Result<PreflightFacts> query_preflight_facts(QmpClient& qmp, Deadline deadline);

// Pure: every rule is in here.
std::vector<Finding> judge_source(const PreflightFacts& facts, DestinationHost destination);

// May a process with these ids use userfaultfd for pages that the kernel touches (KVM)? Tried in a child that becomes that user, by both
// ways. A note if so; a refusal that names both ways and their errors if not; a warning if we may not become that user to try.
struct UserIds {
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::vector<std::uint32_t> groups;
};
Result<Finding> check_userfaultfd(const UserIds& user, int qemu_version);

// What was found when both ways were tried: 0 or an errno each. Pure part of the above.
struct UserfaultTrial {
  int become_user_errno = 0;  // then nothing was tried
  int device_errno = 0;       // /dev/userfaultfd, which QEMU uses from 8.0 on
  int syscall_errno = 0;      // userfaultfd(2)
};
Finding judge_userfaultfd(const UserIds& user, int qemu_version, const UserfaultTrial& trial);

}  // namespace pageferry
