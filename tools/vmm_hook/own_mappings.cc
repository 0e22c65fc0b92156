// A line of /proc/self/maps: "begin-end perms offset major:minor inode path", numbers but the inode in hexadecimal. perms ends in 's' for
// MAP_SHARED and in 'p' for MAP_PRIVATE. Anonymous memory has no inode; anonymous huge pages have the path "/anon_hugepage (deleted)".
#include "tools/vmm_hook/own_mappings.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace pageferry {
namespace {

constexpr std::string_view kMapsPath = "/proc/self/maps";
constexpr std::string_view kAnonymousHuge = "/anon_hugepage";

struct Mapping {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t offset = 0;
  std::uint64_t inode = 0;
  unsigned device_major = 0;
  unsigned device_minor = 0;
  bool shared = false;
  bool writable = false;
  bool anonymous_huge = false;
};

Result<std::vector<Mapping>> own_mappings() {
  std::ifstream file{std::string(kMapsPath)};
  if (!file) return fail(Errc::unsupported, fmt::format("cannot read {}", kMapsPath));
  std::vector<Mapping> mappings;
  for (std::string line; std::getline(file, line);) {
    unsigned long begin = 0;
    unsigned long end = 0;
    unsigned long offset = 0;
    unsigned long inode = 0;
    char permissions[5] = {};
    int path_at = 0;
    Mapping mapping;
    // NOLINTNEXTLINE(cert-err34-c): the kernel writes these lines.
    const int fields =
        std::sscanf(line.c_str(), "%lx-%lx %4s %lx %x:%x %lu %n", &begin, &end, permissions,
                    &offset, &mapping.device_major, &mapping.device_minor, &inode, &path_at);
    if (fields != 7) {
      return fail(Errc::unsupported, fmt::format("{}: cannot read '{}'", kMapsPath, line));
    }
    mapping.begin = begin;
    mapping.end = end;
    mapping.offset = offset;
    mapping.inode = inode;
    mapping.writable = permissions[1] == 'w';
    mapping.shared = permissions[3] == 's';
    mapping.anonymous_huge =
        line.compare(static_cast<std::size_t>(path_at), kAnonymousHuge.size(), kAnonymousHuge) == 0;
    mappings.push_back(mapping);
  }
  return mappings;
}

Result<void> check_anonymous(const hook_protocol::SlotReply& slot, const Mapping& mapping) {
  if (mapping.shared || (mapping.inode != 0 && !mapping.anonymous_huge)) {
    return fail(Errc::invalid,
                fmt::format("slot '{}': memory_fd is -1, but {:#x} is {}", slot.name, mapping.begin,
                            mapping.shared ? "shared memory" : "mapped from a file"));
  }
  const bool huge = slot.backing_page_bytes != kPageSizeBytes;
  if (huge == mapping.anonymous_huge) return {};
  return fail(Errc::invalid,
              fmt::format("slot '{}': backing_page_bytes is {}, but {:#x} has {} pages", slot.name,
                          slot.backing_page_bytes, mapping.begin, huge ? "small" : "huge"));
}

Result<void> check_file(const hook_protocol::SlotReply& slot, const SlotMemory& memory,
                        const Mapping& mapping) {
  struct stat status {};
  if (::fstat(memory.memory.get(), &status) != 0) return syscall_error("fstat", slot.name);
  const bool same = mapping.shared && mapping.inode == status.st_ino &&
                    mapping.device_major == major(status.st_dev) &&
                    mapping.device_minor == minor(status.st_dev);
  const bool at_offset = mapping.begin - slot.host_address ==
                         mapping.offset - slot.memory_offset_bytes;  // both may wrap, alike
  if (same && at_offset) return {};
  return fail(Errc::invalid,
              fmt::format("slot '{}': what is mapped at {:#x} is {}", slot.name, mapping.begin,
                          same ? fmt::format("offset {:#x} of memory_fd, not what "
                                             "memory_fd_offset {:#x} says",
                                             mapping.offset, slot.memory_offset_bytes)
                               : "not memory_fd, mapped MAP_SHARED"));
}

Result<void> check_slot(const hook_protocol::SlotReply& slot, const SlotMemory& memory,
                        const std::vector<Mapping>& mappings) {
  const std::uint64_t end = slot.host_address + slot.size_bytes;
  std::uint64_t at = slot.host_address;
  for (const Mapping& mapping : mappings) {
    if (mapping.end <= at) continue;
    if (mapping.begin > at || at >= end) break;
    if (!mapping.writable) {
      return fail(Errc::invalid, fmt::format("slot '{}': {:#x} is mapped without PROT_WRITE",
                                             slot.name, mapping.begin));
    }
    PF_TRY(slot.has_memory ? check_file(slot, memory, mapping) : check_anonymous(slot, mapping));
    at = mapping.end;
  }
  if (at >= end) return {};
  return fail(Errc::invalid, fmt::format("slot '{}': nothing is mapped at {:#x}", slot.name, at));
}

}  // namespace

Result<void> check_own_mappings(const HookConfig& config) {
  PF_ASSIGN(const std::vector<Mapping> mappings, own_mappings());
  for (std::size_t i = 0; i < config.slots.size(); ++i) {
    PF_TRY(check_slot(config.slots[i], config.memory[i], mappings));
  }
  return {};
}

}  // namespace pageferry
