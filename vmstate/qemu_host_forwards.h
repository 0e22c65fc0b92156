// Host forwards (hostfwd) of user-mode networks. Two QEMUs on one host cannot listen on one port:
// the destination is started without them, and they are put back once the source has ended. Read
// from the running QEMU, so those added at run time move too.
//
// Thread rule: functions without state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/qmp_client.h"

namespace pageferry {

struct HostForward {
  std::string netdev;        // id
  std::string protocol;      // "tcp" or "udp"
  std::string host_address;  // "" = all
  std::uint16_t host_port = 0;
  std::string guest_address;
  std::uint16_t guest_port = 0;
  friend bool operator==(const HostForward&, const HostForward&) = default;
};

// From the text of HMP `info usernet`. Pure. Lines that are no forwards are skipped.
std::vector<HostForward> parse_host_forwards(std::string_view info_usernet);

Result<std::vector<HostForward>> query_host_forwards(QmpClient& qmp, Deadline deadline);
// Adds each; goes on after a failure and returns the first one (the port may have been taken by
// somebody else meanwhile).
Result<void> add_host_forwards(QmpClient& qmp, const std::vector<HostForward>& forwards,
                               Deadline deadline);

}  // namespace pageferry
