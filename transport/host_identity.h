// Who we are: this host in this boot, a process that cannot be mistaken for a later one with the
// same pid, and random names that nobody else has. Knows nothing of ownership.
//
// Thread rule: values and pure reads of /proc, /etc/machine-id and getrandom(2).
#pragma once

#include <sys/types.h>

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "transport/os/error.h"

namespace pageferry {

// 128 random bits; 32 lower-case hex digits as text.
struct RandomId {
  static constexpr std::size_t kBytes = 16;
  std::array<std::uint8_t, kBytes> bytes{};

  std::string hex() const;
  // Errc::invalid unless exactly 32 lower-case hex digits.
  static Result<RandomId> parse(std::string_view text);
  // From getrandom(2); fails only where the kernel has none.
  static Result<RandomId> make();
  friend auto operator<=>(const RandomId&, const RandomId&) = default;
};

inline constexpr std::size_t kHostNameBytesMax = 253;

// A host in one boot. The boot id alone says "the same running kernel"; name and machine id
// together say "the same machine, perhaps after a reboot". The machine id may be empty (there is no
// /etc/machine-id): then a reboot of that host can never be concluded from its records, because two
// machines may share a name.
struct HostIdentity {
  std::string name;     // 1..253 bytes of printable ASCII without space
  std::string machine;  // 32 lower-case hex digits, or empty
  std::string boot_id;  // the kernel's UUID text, 36 bytes
  friend bool operator==(const HostIdentity&, const HostIdentity&) = default;
};

// Errc::invalid; the message names the field, its value and what it should be.
Result<void> validate_host(const HostIdentity& host);

// The same machine, in the same boot.
bool same_boot(const HostIdentity& a, const HostIdentity& b);
// The same machine, surely in another boot: what ran there in the one boot is gone if the other
// came later. The caller knows which is later (its own boot is now).
bool same_machine_other_boot(const HostIdentity& a, const HostIdentity& b);

// uname(2)'s node name, /etc/machine-id, /proc/sys/kernel/random/boot_id.
Result<HostIdentity> this_host();

// A process of one boot: the pid with its start time (clock ticks since boot, field 22 of
// /proc/PID/stat).
struct ProcessIdentity {
  pid_t pid = 0;
  std::uint64_t start_ticks = 0;
  friend auto operator<=>(const ProcessIdentity&, const ProcessIdentity&) = default;
};

// Errc::gone when there is no such process, or only its unreaped remains (a zombie executes
// nothing).
Result<ProcessIdentity> identify_process(pid_t pid);
Result<ProcessIdentity> this_process();
// False when the pid is gone, is a zombie, or belongs to a later process. Any other trouble reading
// /proc is an error: it proves nothing.
Result<bool> is_alive(const ProcessIdentity& process);

}  // namespace pageferry
