// Identities that survive neither a reboot nor a reuse of a pid.
//
// A pid alone names whoever has it now; pid plus start time names one process of one boot. A host
// name alone is shared by cloned machines, and a boot id alone says nothing after the reboot; so a
// host is its boot id while it is up, and "the same machine in another boot" only when name and a
// non-empty machine id agree. When in doubt the answer is "not the same", and the unplanned case
// then needs fencing.
#include "transport/host_identity.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>

#include "transport/os/fd.h"

namespace pageferry {
namespace {

constexpr std::string_view kHexDigits = "0123456789abcdef";
constexpr std::size_t kUuidBytes = 36;
constexpr std::size_t kMachineIdBytes = 32;
constexpr std::size_t kProcFileBytesMax = std::size_t{4} << 10;

bool is_hex(std::string_view text) {
  return text.find_first_not_of(kHexDigits) == std::string_view::npos;
}

bool is_uuid(std::string_view text) {
  if (text.size() != kUuidBytes) return false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (dash ? text[i] != '-' : kHexDigits.find(text[i]) == std::string_view::npos) return false;
  }
  return true;
}

// The content of a small text file of the kernel or of /etc, at most kProcFileBytesMax.
Result<std::string> read_small_file(const std::string& path) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return syscall_error("open", path);
  std::string content(kProcFileBytesMax, '\0');
  std::size_t size = 0;
  while (size < content.size()) {
    const ssize_t got = ::read(file.get(), content.data() + size, content.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return syscall_error("read", path);
    if (got == 0) break;
    size += static_cast<std::size_t>(got);
  }
  content.resize(size);
  return content;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
  return text;
}

struct ProcStat {
  char state = '?';
  std::uint64_t start_ticks = 0;
};

// Fields 3 and 22. The command name (field 2) may hold anything, so counting starts after the last
// ')'.
Result<ProcStat> parse_proc_stat(std::string_view text, std::string_view path) {
  const auto malformed = [&] {
    return fail(Errc::io, fmt::format("{}: cannot find state and start time in it", path));
  };
  const std::size_t command_end = text.rfind(')');
  if (command_end == std::string_view::npos) return malformed();
  std::string_view rest = text.substr(command_end + 1);
  ProcStat stat;
  constexpr int kStateField = 3;
  constexpr int kStartField = 22;
  for (int field = kStateField; field <= kStartField; ++field) {
    const std::size_t begin = rest.find_first_not_of(' ');
    if (begin == std::string_view::npos) return malformed();
    const std::size_t end = std::min(rest.find(' ', begin), rest.size());
    const std::string_view word = rest.substr(begin, end - begin);
    rest.remove_prefix(end);
    if (field == kStateField) stat.state = word.front();
    if (field == kStartField) {
      const auto [tail, error] =
          std::from_chars(word.data(), word.data() + word.size(), stat.start_ticks);
      if (error != std::errc() || tail != word.data() + word.size()) return malformed();
    }
  }
  return stat;
}

bool executes_nothing(char state) {
  return state == 'Z' || state == 'X' || state == 'x';
}

}  // namespace

std::string RandomId::hex() const {
  std::string text;
  text.reserve(2 * kBytes);
  for (const std::uint8_t byte : bytes) {
    text.push_back(kHexDigits[byte >> 4U]);
    text.push_back(kHexDigits[byte & 0xfU]);
  }
  return text;
}

Result<RandomId> RandomId::parse(std::string_view text) {
  if (text.size() != 2 * kBytes || !is_hex(text)) {
    return fail(Errc::invalid, fmt::format("id has {} bytes or is not hex: want {} of [0-9a-f]",
                                           text.size(), 2 * kBytes));
  }
  RandomId id;
  for (std::size_t i = 0; i < kBytes; ++i) {
    const auto high = kHexDigits.find(text[2 * i]);
    const auto low = kHexDigits.find(text[2 * i + 1]);
    id.bytes[i] = static_cast<std::uint8_t>(high << 4U | low);
  }
  return id;
}

Result<RandomId> RandomId::make() {
  RandomId id;
  std::size_t filled = 0;
  while (filled < kBytes) {
    const ssize_t got = ::getrandom(id.bytes.data() + filled, kBytes - filled, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return syscall_error("getrandom", "a claimant id");
    filled += static_cast<std::size_t>(got);
  }
  return id;
}

Result<void> validate_host(const HostIdentity& host) {
  const auto printable = [](char c) { return c > ' ' && c < '\x7f'; };
  if (host.name.empty() || host.name.size() > kHostNameBytesMax ||
      !std::all_of(host.name.begin(), host.name.end(), printable)) {
    return fail(Errc::invalid,
                fmt::format("host name has {} bytes: want 1..{} of printable ASCII, no space",
                            host.name.size(), kHostNameBytesMax));
  }
  if (!host.machine.empty() && (host.machine.size() != kMachineIdBytes || !is_hex(host.machine))) {
    return fail(Errc::invalid, fmt::format("machine id has {} bytes or is not hex: want {} or none",
                                           host.machine.size(), kMachineIdBytes));
  }
  if (!is_uuid(host.boot_id)) {
    return fail(Errc::invalid,
                fmt::format("boot id has {} bytes or is no UUID: want {} bytes, lower case",
                            host.boot_id.size(), kUuidBytes));
  }
  return {};
}

bool same_boot(const HostIdentity& a, const HostIdentity& b) {
  return a == b;
}

bool same_machine_other_boot(const HostIdentity& a, const HostIdentity& b) {
  return a.name == b.name && !a.machine.empty() && a.machine == b.machine && a.boot_id != b.boot_id;
}

Result<HostIdentity> this_host() {
  utsname names{};
  if (::uname(&names) != 0) return syscall_error("uname", "this host");
  HostIdentity host;
  host.name = names.nodename;
  PF_ASSIGN(const std::string boot, read_small_file("/proc/sys/kernel/random/boot_id"));
  host.boot_id = trimmed(boot);
  auto machine = read_small_file("/etc/machine-id");
  if (machine) {
    host.machine = trimmed(*machine);
    // systemd writes "uninitialized" there on a first boot: as good as none.
    if (host.machine.size() != kMachineIdBytes || !is_hex(host.machine)) host.machine.clear();
  } else if (machine.error().code != Errc::not_found) {
    return with_context(std::move(machine).error(), "identity of this host");
  }
  auto valid = validate_host(host);
  if (!valid) return with_context(std::move(valid).error(), "identity of this host");
  return host;
}

Result<ProcessIdentity> identify_process(pid_t pid) {
  if (pid <= 0) return fail(Errc::invalid, fmt::format("pid {}: want > 0", pid));
  const std::string path = fmt::format("/proc/{}/stat", pid);
  auto text = read_small_file(path);
  if (!text) {
    const Error& error = text.error();
    if (error.code == Errc::not_found || error.code == Errc::gone) {
      return fail(Errc::gone, fmt::format("process {}: there is none", pid));
    }
    return Unexpected(std::move(text).error());
  }
  PF_ASSIGN(const ProcStat stat, parse_proc_stat(*text, path));
  if (executes_nothing(stat.state)) {
    return fail(Errc::gone, fmt::format("process {}: it has ended", pid));
  }
  return ProcessIdentity{pid, stat.start_ticks};
}

Result<ProcessIdentity> this_process() {
  return identify_process(::getpid());
}

Result<bool> is_alive(const ProcessIdentity& process) {
  auto now = identify_process(process.pid);
  if (now) return *now == process;
  if (now.error().code == Errc::gone) return false;
  return Unexpected(std::move(now).error());
}

}  // namespace pageferry
