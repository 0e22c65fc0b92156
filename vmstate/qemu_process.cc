// /proc/PID read with bounds. The start time is read first and again last: a pid that was reused
// between the reads shows as a changed start time, and nothing mixed from two processes is ever
// returned.
#include "vmstate/qemu_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <optional>

namespace pageferry {
namespace {

constexpr std::size_t kProcFileBytesMax = std::size_t{4} << 20;
constexpr std::string_view kDeletedSuffix = " (deleted)";

Unexpected gone(int pid) {
  return fail(Errc::gone, fmt::format("process {} does not exist", pid));
}

// A whole file of /proc, which has no size beforehand.
Result<std::string> read_proc_file(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return syscall_error("open", path);
  std::string text;
  std::array<char, 16384> chunk{};
  for (;;) {
    const ssize_t got = ::read(fd.get(), chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return syscall_error("read", path);
    if (got == 0) return text;
    text.append(chunk.data(), static_cast<std::size_t>(got));
    if (text.size() > kProcFileBytesMax) {
      return fail(Errc::invalid, fmt::format("{} has more than {} bytes", path, kProcFileBytesMax));
    }
  }
}

Result<std::string> read_proc_link(const std::string& path) {
  std::array<char, kPathBytesMax + kDeletedSuffix.size() + 1> target{};
  const ssize_t length = ::readlink(path.c_str(), target.data(), target.size());
  if (length < 0) return syscall_error("readlink", path);
  return std::string(target.data(), static_cast<std::size_t>(length));
}

template <typename Number>
std::optional<Number> number_in(std::string_view text) {
  Number value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  std::size_t at = 0;
  while ((at = text.find_first_not_of(" \t\n", at)) != std::string_view::npos) {
    const std::size_t end = std::min(text.find_first_of(" \t\n", at), text.size());
    words.push_back(text.substr(at, end - at));
    at = end;
  }
  return words;
}

// The words behind "<key>:" in /proc/PID/status.
std::vector<std::string_view> status_line(std::string_view status, std::string_view key) {
  const std::string start = fmt::format("\n{}:", key);
  const auto at = status.find(start);
  if (at == std::string_view::npos) return {};
  const auto begin = at + start.size();
  const auto end = std::min(status.find('\n', begin), status.size());
  return words_of(status.substr(begin, end - begin));
}

Result<std::vector<std::string>> read_arguments(const std::string& path) {
  PF_ASSIGN(const std::string text, read_proc_file(path));
  std::vector<std::string> arguments;
  for (std::size_t at = 0; at < text.size();) {
    const auto end = std::min(text.find('\0', at), text.size());
    if (end - at > kArgumentBytesMax || arguments.size() >= kArgumentsMax) {
      return fail(
          Errc::invalid,
          fmt::format("{}: argument {} has {} bytes, the limits are {} arguments of {} bytes", path,
                      arguments.size(), end - at, kArgumentsMax, kArgumentBytesMax));
    }
    arguments.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return arguments;
}

Result<void> read_credentials(const std::string& path, VmmProcess& process) {
  PF_ASSIGN(const std::string status, read_proc_file(path));
  const auto uids = status_line(status, "Uid");  // real, effective, saved, file system
  const auto gids = status_line(status, "Gid");
  const auto uid = uids.size() == 4 ? number_in<std::uint32_t>(uids[1]) : std::nullopt;
  const auto gid = gids.size() == 4 ? number_in<std::uint32_t>(gids[1]) : std::nullopt;
  if (!uid || !gid)
    return fail(Errc::invalid, fmt::format("{}: no Uid and Gid lines of four numbers", path));
  process.uid = *uid;
  process.gid = *gid;
  for (const auto word : status_line(status, "Groups")) {
    const auto group = number_in<std::uint32_t>(word);
    if (!group || process.groups.size() >= kGroupsMax) {
      return fail(Errc::invalid, fmt::format("{}: group {} is no number, or there are more than {}",
                                             path, word, kGroupsMax));
    }
    process.groups.push_back(*group);
  }
  return {};
}

// The path in the unified hierarchy ("0::/path"), or libvirt's in an old one.
std::string cgroup_in(std::string_view text) {
  std::string found;
  for (std::size_t at = 0; at < text.size();) {
    const auto end = std::min(text.find('\n', at), text.size());
    const auto line = text.substr(at, end - at);
    const auto path = line.find(":/");
    if (line.substr(0, 3) == "0::") return std::string(line.substr(3));
    if (path != std::string_view::npos && found.empty()) found = line.substr(path + 1);
    at = end + 1;
  }
  return found;
}

}  // namespace

Result<VmmProcess> read_vmm_process(int pid, const std::string& proc_root) {
  VmmProcess process;
  PF_ASSIGN(process.identity, identify_process(pid));
  const std::string directory = fmt::format("{}/{}", proc_root, pid);
  PF_ASSIGN(process.executable, read_proc_link(directory + "/exe"));
  if (process.executable.ends_with(kDeletedSuffix)) {
    process.executable.resize(process.executable.size() - kDeletedSuffix.size());
    process.executable_deleted = true;
  }
  PF_ASSIGN(process.argv, read_arguments(directory + "/cmdline"));
  if (process.argv.empty()) return gone(pid);
  PF_ASSIGN(process.working_directory, read_proc_link(directory + "/cwd"));
  PF_TRY(read_credentials(directory + "/status", process));
  if (const auto cgroup = read_proc_file(directory + "/cgroup"))
    process.cgroup = cgroup_in(*cgroup);
  PF_ASSIGN(const ProcessIdentity again, identify_process(pid));
  if (again != process.identity) return gone(pid);
  return process;
}

Result<VmmProcess> read_qemu_process(int pid, const std::string& proc_root) {
  PF_ASSIGN(VmmProcess process, read_vmm_process(pid, proc_root));
  const auto name = process.executable.substr(process.executable.rfind('/') + 1);
  if (name.find("qemu") != std::string::npos || name == "kvm") return process;
  return fail(
      Errc::invalid,
      fmt::format(
          "process {} is {}, no QEMU (its monitor may have been opened by another process: a "
          "management daemon)",
          pid, process.executable));
}

Result<UniqueFd> open_pidfd(const ProcessIdentity& identity) {
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, identity.pid, 0)));
  if (!fd.valid()) {
    if (errno == ESRCH) return gone(identity.pid);
    return syscall_error("pidfd_open", std::to_string(identity.pid));
  }
  // The pid is pinned now: if it still has the start time, the descriptor means the right process.
  PF_ASSIGN(const ProcessIdentity now, identify_process(identity.pid));
  if (now != identity) return gone(identity.pid);
  return fd;
}

bool has_ended(const UniqueFd& pidfd, Milliseconds wait) {
  const MonotonicClock clock;
  const Deadline deadline = Deadline::after(clock, wait);
  for (;;) {
    pollfd entry{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
    const int ready = ::poll(&entry, 1, deadline.poll_timeout_ms());
    if (ready > 0) return true;
    if (ready == 0 || deadline.passed()) return false;
  }
}

Result<void> refuse_libvirt_guest(const VmmProcess& process) {
  std::string evidence;
  if (process.cgroup.find("/machine-qemu") != std::string::npos ||
      process.cgroup.find("/libvirt") != std::string::npos) {
    evidence = fmt::format("its cgroup is {}", process.cgroup);
  }
  for (std::size_t i = 1; evidence.empty() && i < process.argv.size(); ++i) {
    const std::string& argument = process.argv[i];
    const bool charmonitor = argument.find("id=charmonitor") != std::string::npos;
    if (charmonitor || argument.find("/lib/libvirt/qemu/") != std::string::npos ||
        argument.find("/run/libvirt/qemu/") != std::string::npos) {
      evidence = fmt::format("its command line has \"{}\"", argument.substr(0, 100));
    }
  }
  if (evidence.empty()) return {};
  return fail(
      Errc::invalid,
      fmt::format(
          "process {} is managed by libvirt ({}): its descriptors cannot be made again, and "
          "libvirt "
          "would take the move for a crash; give --incoming-command to move it all the same",
          process.identity.pid, evidence));
}

}  // namespace pageferry
