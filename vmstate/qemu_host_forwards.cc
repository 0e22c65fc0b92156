// HMP `info usernet` is the only place where QEMU tells its host forwards; it has kept this form
// since 2.x:
//
//   Hub -1 (n0):
//     Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
//     TCP[HOST_FORWARD]  16       127.0.0.1 12222       10.0.2.15    22     0     0
#include "vmstate/qemu_host_forwards.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>

namespace pageferry {
namespace {

using nlohmann::json;

std::vector<std::string> words_of(std::string_view line) {
  std::vector<std::string> words;
  for (std::size_t at = 0; (at = line.find_first_not_of(" \t\r", at)) != std::string_view::npos;) {
    const auto end = std::min(line.find_first_of(" \t\r", at), line.size());
    words.emplace_back(line.substr(at, end - at));
    at = end;
  }
  return words;
}

std::optional<std::uint16_t> port_in(const std::string& text) {
  std::uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return port;
}

// "Hub -1 (n0):" -> "n0"; older: "VLAN 0 (n0):".
std::optional<std::string> netdev_in(std::string_view line) {
  const auto open = line.find('(');
  const auto close = line.rfind("):");
  if (line.empty() || line.front() == ' ' || open == std::string_view::npos ||
      close == std::string_view::npos || close <= open) {
    return std::nullopt;
  }
  return std::string(line.substr(open + 1, close - open - 1));
}

std::optional<HostForward> forward_in(std::string_view line, const std::string& netdev) {
  const auto words = words_of(line);
  constexpr std::size_t kWords = 8;
  if (words.size() != kWords ||
      (words[0] != "TCP[HOST_FORWARD]" && words[0] != "UDP[HOST_FORWARD]"))
    return std::nullopt;
  const auto host_port = port_in(words[3]);
  const auto guest_port = port_in(words[5]);
  if (!host_port || !guest_port) return std::nullopt;
  return HostForward{.netdev = netdev,
                     .protocol = words[0].substr(0, 3) == "TCP" ? "tcp" : "udp",
                     .host_address = words[2] == "*" ? "" : words[2],
                     .host_port = *host_port,
                     .guest_address = words[4],
                     .guest_port = *guest_port};
}

}  // namespace

std::vector<HostForward> parse_host_forwards(std::string_view info_usernet) {
  std::vector<HostForward> forwards;
  std::string netdev;
  for (std::size_t at = 0; at < info_usernet.size();) {
    const auto end = std::min(info_usernet.find('\n', at), info_usernet.size());
    const std::string_view line = info_usernet.substr(at, end - at);
    if (auto name = netdev_in(line)) {
      netdev = std::move(*name);
    } else if (auto forward = forward_in(line, netdev)) {
      forwards.push_back(std::move(*forward));
    }
    at = end + 1;
  }
  return forwards;
}

Result<std::vector<HostForward>> query_host_forwards(QmpClient& qmp, Deadline deadline) {
  const auto reply =
      qmp.execute("human-monitor-command", {{"command-line", "info usernet"}}, deadline);
  if (!reply && reply.error().code == Errc::vmm)
    return std::vector<HostForward>();  // built without user-mode networks
  if (!reply) return tl::make_unexpected(reply.error());
  return parse_host_forwards(reply->is_string() ? reply->get<std::string>() : "");
}

Result<void> add_host_forwards(QmpClient& qmp, const std::vector<HostForward>& forwards,
                               Deadline deadline) {
  Result<void> first;
  for (const HostForward& forward : forwards) {
    const std::string command = fmt::format(
        "hostfwd_add {} {}:{}:{}-{}:{}", forward.netdev, forward.protocol, forward.host_address,
        forward.host_port, forward.guest_address, forward.guest_port);
    const auto reply = qmp.execute("human-monitor-command", {{"command-line", command}}, deadline);
    if (!reply) {
      if (first) first = tl::make_unexpected(reply.error());
    } else if (const std::string said = reply->is_string() ? reply->get<std::string>() : "";
               !said.empty() && first) {
      first = fail(Errc::vmm,
                   fmt::format("{}: {}", command, said.substr(0, said.find_first_of("\r\n"))));
    }
  }
  return first;
}

}  // namespace pageferry
