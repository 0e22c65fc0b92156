// VmmCallbacks: the VMM's functions, with errors as everywhere here. Whatever they throw (a VMM may be C++) ends here.
//
// Thread rule: one thread, the hook's worker.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "pager/vmm_dirty_source.h"
#include "tools/vmm_hook/pageferry_hook.h"
#include "transport/os/error.h"

struct pageferry_state_writer {
  std::vector<std::byte> bytes;
};
struct pageferry_state_reader {
  std::span<const std::byte> bytes;
  std::size_t at = 0;
};

namespace pageferry {

class VmmCallbacks final : public VmmDirtyLog {
 public:
  VmmCallbacks(const pageferry_hook_callbacks& functions, void* opaque)
      : functions_(functions), opaque_(opaque) {}

  // Errors of all: vmm (with the callback's name and what errno says), no_space.
  Result<void> pause();
  Result<void> resume();
  Result<std::vector<std::byte>> save_state();
  Result<void> load_state(std::span<const std::byte> state);
  void moved_away();
  void resident();

  Result<void> start_log() override;
  Result<void> fetch_and_rearm(std::size_t block, std::span<std::uint64_t> words) override;
  Result<void> stop_log() override;

 private:
  pageferry_hook_callbacks functions_;
  void* opaque_;
};

}  // namespace pageferry
