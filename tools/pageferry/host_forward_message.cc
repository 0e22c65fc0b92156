// Six fields a forward, by name.
#include "tools/pageferry/host_forward_message.h"

#include <fmt/format.h>

namespace pageferry {

nlohmann::json host_forwards_to_json(const std::vector<HostForward>& forwards) {
  nlohmann::json json = nlohmann::json::array();
  for (const HostForward& forward : forwards) {
    json.push_back({{"netdev", forward.netdev},
                    {"protocol", forward.protocol},
                    {"host-address", forward.host_address},
                    {"host-port", forward.host_port},
                    {"guest-address", forward.guest_address},
                    {"guest-port", forward.guest_port}});
  }
  return json;
}

Result<std::vector<HostForward>> host_forwards_from_json(const nlohmann::json& json) {
  std::vector<HostForward> forwards;
  try {
    for (const nlohmann::json& entry : json) {
      HostForward forward;
      forward.netdev = entry.at("netdev");
      forward.protocol = entry.at("protocol");
      forward.host_address = entry.at("host-address");
      forward.host_port = entry.at("host-port");
      forward.guest_address = entry.at("guest-address");
      forward.guest_port = entry.at("guest-port");
      forwards.push_back(std::move(forward));
    }
  } catch (const nlohmann::json::exception& error) {
    return fail(Errc::invalid, fmt::format("host forwards: {}", error.what()));
  }
  return forwards;
}

}  // namespace pageferry
