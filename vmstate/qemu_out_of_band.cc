// Lines are read one by one on the caller's thread: nobody waits for events here. A request carries a random id, since an answer to a
// pager that was killed may come first; so may half a line of it, and events that nobody has read for hours.
#include "vmstate/qemu_out_of_band.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <utility>

#include "transport/os/process_descriptors.h"
#include "vmstate/monitor_socket.h"
#include "vmstate/qemu_process.h"

namespace pageferry {
namespace {

using nlohmann::json;

constexpr const char* kDescriptorName = "pageferry-oob";
constexpr std::size_t kReplyReadBytes = std::size_t{64} << 10;
constexpr std::size_t kLineBytesMax = std::size_t{1} << 20;

Result<std::uint64_t> inode_of(const UniqueFd& fd) {
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return syscall_error("fstat", "out-of-band connection");
  return static_cast<std::uint64_t>(status.st_ino);
}

Error error_of_reply(std::string_view command, const json& reply) {
  const auto error = reply.find("error");
  const std::string said = error != reply.end() ? error->dump() : reply.dump();
  return Error{Errc::vmm, 0, fmt::format("QMP {} (out-of-band): {}", command, printable(said))};
}

}  // namespace

Result<std::uint64_t> QemuOutOfBand::leave(QmpClient& qmp, const std::string& socket_path,
                                           Deadline deadline) {
  PF_ASSIGN(UniqueFd fd, connect_monitor(socket_path, deadline));
  QemuOutOfBand connection(std::move(fd));
  auto negotiated = connection.negotiate(deadline);
  if (!negotiated) return with_context(std::move(negotiated).error(), socket_path);
  PF_ASSIGN(const std::uint64_t inode, inode_of(connection.fd_));
  PF_TRY(
      qmp.execute_with_fd("getfd", {{"fdname", kDescriptorName}}, connection.fd_.get(), deadline));
  return inode;
}

Result<void> QemuOutOfBand::negotiate(Deadline deadline) {
  for (bool greeted = false; !greeted;) {
    PF_ASSIGN(const json greeting, next_object(deadline));
    greeted = greeting.contains("QMP");
  }
  PF_TRY(send({{"execute", "qmp_capabilities"}, {"arguments", {{"enable", {"oob"}}}}}, deadline));
  for (;;) {
    PF_ASSIGN(const json reply, next_object(deadline));
    if (reply.contains("return")) return {};
    if (reply.contains("error"))
      return tl::make_unexpected(error_of_reply("qmp_capabilities", reply));
  }
}

Result<QemuOutOfBand> QemuOutOfBand::take(const ProcessIdentity& process, std::uint64_t inode) {
  PF_ASSIGN(const UniqueFd pidfd, open_pidfd(process));
  PF_ASSIGN(const auto found, descriptors_of(process.pid, fmt::format("socket:[{}]", inode)));
  if (found.empty()) {
    return fail(Errc::not_found, fmt::format("QEMU {} has no out-of-band connection (socket {})",
                                             process.pid, inode));
  }
  PF_ASSIGN(UniqueFd fd, duplicate_descriptor(pidfd, found.front()));
  PF_ASSIGN(const std::uint64_t taken, inode_of(fd));
  if (taken == inode) return QemuOutOfBand(std::move(fd));
  return fail(Errc::not_found,
              fmt::format("QEMU {} has just closed its out-of-band connection", process.pid));
}

Result<void> QemuOutOfBand::remove(QmpClient& qmp, Deadline deadline) {
  auto closed = qmp.execute("closefd", {{"fdname", kDescriptorName}}, deadline);
  if (closed || closed.error().code == Errc::vmm) return {};
  return tl::make_unexpected(std::move(closed).error());
}

Result<json> QemuOutOfBand::execute(std::string_view command, json arguments, Deadline deadline) {
  PF_ASSIGN(const RandomId random, RandomId::make());
  const std::string id = random.hex();
  json request = {{"exec-oob", std::string(command)}, {"id", id}};
  if (!arguments.empty()) request["arguments"] = std::move(arguments);
  PF_TRY(send(request, deadline));
  for (;;) {
    auto reply = next_object(deadline);
    if (!reply) {
      return with_context(std::move(reply).error(),
                          fmt::format("QMP {} (out-of-band): no answer", command));
    }
    if (reply->value("id", json()) != json(id)) continue;
    if (const auto value = reply->find("return"); value != reply->end()) return std::move(*value);
    return tl::make_unexpected(error_of_reply(command, *reply));
  }
}

Result<void> QemuOutOfBand::send(const json& request, Deadline deadline) {
  const std::string line = request.dump() + "\n";
  std::string_view bytes = line;
  while (!bytes.empty()) {
    const ssize_t sent = send_some(fd_.get(), bytes, -1);
    if (sent > 0) {
      bytes.remove_prefix(static_cast<std::size_t>(sent));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return syscall_error("send", "out-of-band connection");
    if (!wait_writable(fd_.get(), deadline))
      return fail(Errc::timeout, "the out-of-band connection takes no bytes in time");
  }
  return {};
}

// The next whole line that is a JSON object; others, the rest of one that a killed pager began to read among them, are skipped.
Result<json> QemuOutOfBand::next_object(Deadline deadline) {
  for (;;) {
    while (const auto length = pending_.find('\n') + 1) {
      json line = json::parse(pending_.substr(0, length), nullptr, /*allow_exceptions=*/false);
      pending_.erase(0, length);
      if (line.is_object()) return line;
    }
    if (pending_.size() > kLineBytesMax) return fail(Errc::vmm, "a line without an end");
    pollfd waiting{.fd = fd_.get(), .events = POLLIN, .revents = 0};
    const int ready = ::poll(&waiting, 1, deadline.poll_timeout_ms());
    if (ready == 0) return fail(Errc::timeout, "in time");
    std::array<char, kReplyReadBytes> chunk;
    const ssize_t got = ::recv(fd_.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
    if (got == 0) return fail(Errc::gone, "QEMU closed the out-of-band connection");
    if (got > 0) {
      pending_.append(chunk.data(), static_cast<std::size_t>(got));
    } else if (errno != EINTR && errno != EAGAIN) {
      return syscall_error("recv", "out-of-band connection");
    }
  }
}

}  // namespace pageferry
