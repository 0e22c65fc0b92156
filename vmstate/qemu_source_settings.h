// QemuSourceSettings: migration capabilities and parameters of a source QEMU: what it must not have
// (refused before anything is touched), what we need, and what was there before, to be put back.
//
// Thread rule: one thread. Lifetime: the QmpClient outlives it.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/qmp_client.h"

namespace pageferry {

class QemuSourceSettings {
 public:
  // Reads everything and judges it; changes nothing. Errors: unsupported (a capability, TLS or mode
  // that we cannot follow, or return-path missing; the message names it), busy (a migration is
  // running), vmm (migration blocked, with QEMU's reasons; or a run state that cannot be moved).
  static Result<QemuSourceSettings> read(QmpClient& qmp, const Clock& clock);

  bool guest_running() const { return guest_running_; }
  // Capability switchover-ack (8.1): QEMU waits for our word before it stops the guest.
  bool has_switchover_ack() const { return capabilities_.contains("switchover-ack"); }
  // Parameter avail-switchover-bandwidth (8.2): the bandwidth QEMU reckons with can be given.
  bool has_switchover_bandwidth() const {
    return parameters_.contains("avail-switchover-bandwidth");
  }

  // Capabilities on and off as a capture needs them.
  Result<void> apply();
  // Changes parameters, remembering that restore() has to put them back.
  Result<void> set_parameters(const nlohmann::json& values);
  // Everything that was changed, as it was. Harmless when nothing was. Only when no migration runs.
  Result<void> restore();

 private:
  QemuSourceSettings(QmpClient& qmp, const Clock& clock) : qmp_(&qmp), clock_(&clock) {}
  Result<nlohmann::json> execute(const char* command, nlohmann::json arguments);
  Result<void> check_run_state();
  Result<void> check_no_migration();
  Result<void> read_capabilities();
  Result<void> read_parameters();
  Result<void> check_machine();
  Result<void> set_capabilities(const std::map<std::string, bool>& wanted);

  QmpClient* qmp_;
  const Clock* clock_;
  bool guest_running_ = false;
  bool migration_completed_ = false;          // the last one, before ours
  std::map<std::string, bool> capabilities_;  // as found
  nlohmann::json parameters_;                 // as found
  std::map<std::string, bool> changed_capabilities_;
  std::map<std::string, nlohmann::json> changed_parameters_;  // values to put back
};

// How long one QMP command may take. A QEMU whose main loop is held up by a dirty sync answers
// within seconds.
inline constexpr Seconds kQmpCommandBound{30};

}  // namespace pageferry
