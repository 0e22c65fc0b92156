// HookConfig: what a VMM said at pageferry_hook_start(), checked and copied. Behind it nothing of the caller's structures is looked at any
// more, but for the callbacks and the guest's memory.
//
// Thread rule: immutable after take_config().
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pager/memory_layout.h"
#include "tools/vmm_hook/pageferry_hook.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "vmstate/hook_protocol.h"

namespace pageferry {

enum class HookStart : std::uint8_t { own_guest, incoming };

// Of one slot; invalid descriptors where the memory is anonymous.
struct SlotMemory {
  UniqueFd memory;     // the caller's, duplicated
  UniqueFd for_pager;  // the same for reading only, as an open file of its own
  UniqueFd for_hook;   // the same once more, whose file offset is ours
  std::int32_t kvm_slot = -1;
};

struct HookConfig {
  HookStart start = HookStart::own_guest;
  std::string socket_path;
  std::string vm_name;
  std::string machine;
  MemoryLayout layout;
  std::vector<hook_protocol::SlotReply> slots;  // as the layout's blocks
  std::vector<SlotMemory> memory;               // the same
  pageferry_hook_callbacks callbacks{};
  void* opaque = nullptr;
  pageferry_dirty_source dirty_source = PAGEFERRY_DIRTY_AUTOMATIC;
  int kvm_vm_fd = -1;
  std::vector<std::string> incoming_command;
  std::vector<std::string> pager_command;

  std::vector<std::uint64_t> host_addresses() const;
};

// Errors: invalid (names member, value and limit), version, unsupported, io.
Result<HookConfig> take_config(const pageferry_hook_config* config);

}  // namespace pageferry
