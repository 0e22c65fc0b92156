// Structures come with their size: a shorter one is from before some members, which then are 0; of a longer one, the rest must be 0,
// because it asks for what this library does not have.
#include "tools/vmm_hook/hook_config.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>

#include "tools/vmm_hook/own_mappings.h"
#include "vmstate/local_socket.h"
#include "vmstate/sealed_memory.h"

namespace pageferry {
namespace {

// Where the members of version 1 end.
constexpr std::size_t kConfigBytesMin =
    offsetof(pageferry_hook_config, pager_command) + sizeof(const char* const*);
constexpr std::size_t kCallbacksBytesMin =
    offsetof(pageferry_hook_callbacks, resident) + sizeof(void (*)(void*));
constexpr std::size_t kStructureBytesMax = 4096;

template <typename Structure>
Result<Structure> copy_sized(const char* what, const Structure* from, std::size_t bytes_min) {
  if (from == nullptr) return fail(Errc::invalid, fmt::format("{} is NULL", what));
  const std::size_t size = from->size_bytes;
  if (size < bytes_min || size > kStructureBytesMax) {
    return fail(Errc::invalid, fmt::format("{}: size_bytes is {}, limit {}..{}", what, size,
                                           bytes_min, kStructureBytesMax));
  }
  Structure copy{};
  std::memcpy(&copy, from, std::min(size, sizeof copy));
  const auto* const bytes = reinterpret_cast<const unsigned char*>(from);
  if (size <= sizeof copy || std::all_of(bytes + sizeof copy, bytes + size,
                                         [](unsigned char byte) { return byte == 0; })) {
    return copy;
  }
  return fail(Errc::invalid, fmt::format("{} uses members that this library does not know (it has "
                                         "{} bytes, {} are known)",
                                         what, size, sizeof copy));
}

Result<std::string> copy_text(const char* what, const char* text, std::size_t bytes_max) {
  if (text == nullptr) return fail(Errc::invalid, fmt::format("{} is NULL", what));
  std::string copy(text, ::strnlen(text, bytes_max + 1));
  PF_TRY(hook_protocol::check_text(what, copy, 1, bytes_max));
  return copy;
}

Result<std::vector<std::string>> copy_command(const char* what, const char* const* words) {
  std::vector<std::string> copy;
  if (words == nullptr) return copy;
  for (; *words != nullptr && copy.size() <= hook_protocol::kCommandWordsMax; ++words) {
    copy.emplace_back(*words, ::strnlen(*words, hook_protocol::kCommandBytesMax + 1));
  }
  if (copy.empty()) return fail(Errc::invalid, fmt::format("{} has no words", what));
  PF_TRY(hook_protocol::check_command(what, copy));
  return copy;
}

Result<void> check_callbacks(const pageferry_hook_callbacks& callbacks, HookStart start) {
  if (callbacks.pause == nullptr) return fail(Errc::invalid, "callbacks.pause is NULL");
  if (callbacks.resume == nullptr) return fail(Errc::invalid, "callbacks.resume is NULL");
  if (callbacks.save_state == nullptr) return fail(Errc::invalid, "callbacks.save_state is NULL");
  if (start == HookStart::incoming && callbacks.load_state == nullptr) {
    return fail(Errc::invalid, "callbacks.load_state is NULL and incoming is 1");
  }
  if ((callbacks.fetch_dirty == nullptr) == (callbacks.set_dirty_log == nullptr)) return {};
  return fail(Errc::invalid, "callbacks.fetch_dirty and set_dirty_log come together");
}

// The file is one of memory, has pages of this size, and is long enough.
Result<void> check_memory_file(const hook_protocol::SlotReply& slot, int fd) {
  struct stat status {};
  struct statfs system {};
  if (::fstat(fd, &status) != 0 || ::fstatfs(fd, &system) != 0) {
    return fail(Errc::invalid,
                fmt::format("slot '{}': memory_fd {}: {}", slot.name, fd, std::strerror(errno)));
  }
  const bool huge = system.f_type == HUGETLBFS_MAGIC;
  if (!S_ISREG(status.st_mode) || (!huge && system.f_type != TMPFS_MAGIC)) {
    return fail(
        Errc::invalid,
        fmt::format("slot '{}': memory_fd {} is no memfd, hugetlbfs or tmpfs file", slot.name, fd));
  }
  const auto page_bytes = huge ? static_cast<std::uint64_t>(system.f_bsize) : kPageSizeBytes;
  if (slot.backing_page_bytes != page_bytes) {
    return fail(Errc::invalid, fmt::format("slot '{}': backing_page_bytes is {}, its file has {}",
                                           slot.name, slot.backing_page_bytes, page_bytes));
  }
  const auto bytes = static_cast<std::uint64_t>(status.st_size);
  if (bytes >= slot.size_bytes && slot.memory_offset_bytes <= bytes - slot.size_bytes) return {};
  return fail(Errc::invalid,
              fmt::format("slot '{}': {} bytes from {} on, its file has {}", slot.name,
                          slot.size_bytes, slot.memory_offset_bytes, bytes));
}

Result<SlotMemory> take_memory(const hook_protocol::SlotReply& slot,
                               const pageferry_memory_slot& from) {
  SlotMemory memory;
  memory.kvm_slot = from.kvm_slot;
  if (!slot.has_memory) return memory;
  PF_TRY(check_memory_file(slot, from.memory_fd));
  memory.memory.reset(::fcntl(from.memory_fd, F_DUPFD_CLOEXEC, 0));
  if (!memory.memory.valid()) return syscall_error("F_DUPFD_CLOEXEC", slot.name);
  PF_ASSIGN(memory.for_pager, reopen_read_only(memory.memory));
  PF_ASSIGN(memory.for_hook, reopen_read_only(memory.memory));
  return memory;
}

Result<void> take_slots(const pageferry_hook_config& from, HookConfig& config) {
  if (from.slots == nullptr || from.slot_count == 0 || from.slot_count > kBlocksMax) {
    return fail(Errc::invalid,
                fmt::format("slot_count is {}, limit 1..{}", from.slot_count, kBlocksMax));
  }
  const std::span slots(from.slots, from.slot_count);
  for (const pageferry_memory_slot& slot : slots) {
    hook_protocol::SlotReply taken;
    PF_ASSIGN(taken.name, copy_text("name of a memory slot", slot.name, kBlockNameBytesMax));
    taken.guest_address = slot.guest_address;
    taken.size_bytes = slot.size_bytes;
    taken.host_address = reinterpret_cast<std::uintptr_t>(slot.host_address);
    taken.backing_page_bytes = slot.backing_page_bytes;
    taken.memory_offset_bytes = slot.memory_fd_offset;
    taken.has_memory = slot.memory_fd >= 0;
    config.slots.push_back(std::move(taken));
  }
  PF_ASSIGN(config.layout, hook_protocol::check_slots(config.slots));
  for (std::size_t i = 0; i < slots.size(); ++i) {
    PF_ASSIGN(SlotMemory memory, take_memory(config.slots[i], slots[i]));
    config.memory.push_back(std::move(memory));
  }
  return check_own_mappings(config);
}

Result<void> check_dirty_source(const HookConfig& config) {
  const auto number = static_cast<unsigned>(config.dirty_source);
  if (number > PAGEFERRY_DIRTY_WP_SYNC) {
    return fail(Errc::invalid, fmt::format("dirty_source {} is unknown", number));
  }
  if (config.dirty_source == PAGEFERRY_DIRTY_VMM && config.callbacks.fetch_dirty == nullptr) {
    return fail(Errc::invalid, "dirty_source is PAGEFERRY_DIRTY_VMM and fetch_dirty is NULL");
  }
  if (config.dirty_source != PAGEFERRY_DIRTY_KVM_LOG) return {};
  if (config.kvm_vm_fd < 0) {
    return fail(Errc::invalid, "dirty_source is PAGEFERRY_DIRTY_KVM_LOG and kvm_vm_fd is -1");
  }
  for (std::size_t i = 0; i < config.slots.size(); ++i) {
    if (config.memory[i].kvm_slot >= 0) continue;
    return fail(Errc::invalid, fmt::format("slot '{}': kvm_slot is {} and dirty_source is "
                                           "PAGEFERRY_DIRTY_KVM_LOG",
                                           config.slots[i].name, config.memory[i].kvm_slot));
  }
  return {};
}

}  // namespace

std::vector<std::uint64_t> HookConfig::host_addresses() const {
  std::vector<std::uint64_t> addresses;
  for (const auto& slot : slots) addresses.push_back(slot.host_address);
  return addresses;
}

Result<HookConfig> take_config(const pageferry_hook_config* given) {
  PF_ASSIGN(const pageferry_hook_config from, copy_sized("config", given, kConfigBytesMin));
  if (from.abi_version != PAGEFERRY_HOOK_ABI_VERSION) {
    return fail(Errc::version, fmt::format("abi_version is {}, this library has {}",
                                           from.abi_version, PAGEFERRY_HOOK_ABI_VERSION));
  }
  if (from.incoming > 1) {
    return fail(Errc::invalid, fmt::format("incoming is {}, must be 0 or 1", from.incoming));
  }
  HookConfig config;
  config.start = from.incoming == 1 ? HookStart::incoming : HookStart::own_guest;
  PF_ASSIGN(config.socket_path, copy_text("socket_path", from.socket_path, 107));
  PF_ASSIGN(config.vm_name, copy_text("vm_name", from.vm_name, hook_protocol::kVmNameBytesMax));
  PF_ASSIGN(config.machine, copy_text("machine", from.machine, hook_protocol::kMachineBytesMax));
  PF_ASSIGN(config.callbacks, copy_sized("callbacks", from.callbacks, kCallbacksBytesMin));
  config.opaque = from.opaque;
  PF_TRY(check_callbacks(config.callbacks, config.start));
  PF_ASSIGN(config.incoming_command, copy_command("incoming_command", from.incoming_command));
  PF_ASSIGN(config.pager_command, copy_command("pager_command", from.pager_command));
  config.dirty_source = from.dirty_source;
  config.kvm_vm_fd = from.kvm_vm_fd;
  PF_TRY(take_slots(from, config));
  PF_TRY(check_dirty_source(config));
  return config;
}

}  // namespace pageferry
