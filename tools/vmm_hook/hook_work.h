// HookWork: what the hook's worker does for a request: calls the VMM, the dirty source, the kernel. Whether it may be done was decided
// before (guest_state.h), what follows from it is decided after.
//
// Thread rule: the worker, one piece at a time; made and destroyed by others while no work is done. Lifetime: owns what a hook consists of,
// but for its threads.
#pragma once

#include <memory>
#include <string>

#include "tools/vmm_hook/guest_writes.h"
#include "tools/vmm_hook/hook_config.h"
#include "tools/vmm_hook/hook_worker.h"
#include "tools/vmm_hook/incoming_memory.h"
#include "tools/vmm_hook/vmm_callbacks.h"
#include "vmstate/hook_segment.h"

namespace pageferry {

class HookWork {
 public:
  // Errors: as pageferry_hook_start(), but for the socket's.
  static Result<std::unique_ptr<HookWork>> make(HookConfig config);

  const HookConfig& config() const { return config_; }
  const HookSegment& segment() const { return segment_; }
  // nullptr for a VMM that was not started as incoming.
  IncomingMemory* incoming() { return incoming_.get(); }

  // Any thread.
  bool knows_restored_writes() const { return writes_->knows_restored_writes(); }
  hook_protocol::PagePlacing placing() const;

  // `since_attempt`: the one whose image the guest was restored from, or empty.
  WorkOutcome track(const std::string& since_attempt);
  WorkOutcome collect();
  WorkOutcome untrack();
  WorkOutcome pause();
  WorkOutcome resume();
  WorkOutcome save_state();
  // Precondition: `memory` has `bytes` bytes, sealed.
  WorkOutcome load_state(const UniqueFd& memory, std::uint64_t bytes);
  WorkOutcome resident();
  WorkOutcome tell_moved_away();
  WorkOutcome tell_resident();

  // From any thread. Errors: invalid (not inside the slots, not aligned), no_space, io.
  Result<void> mark_dirty(std::uint64_t guest_address, std::uint64_t bytes);
  Result<void> discard(std::uint64_t guest_address, std::uint64_t bytes);

 private:
  HookWork(HookConfig config, HookSegment segment);
  struct Part {
    std::size_t slot = 0;
    std::uint64_t offset_bytes = 0;
    std::uint64_t bytes = 0;
  };
  Result<std::vector<Part>> parts_of(std::uint64_t guest_address, std::uint64_t bytes) const;
  PageRun pages_of(const Part& part) const;

  HookConfig config_;
  VmmCallbacks callbacks_;
  HookSegment segment_;
  std::vector<std::size_t> by_guest_address_;  // indexes of slots
  std::unique_ptr<IncomingMemory> incoming_;
  std::unique_ptr<GuestWrites> writes_;
  std::uint64_t collections_ = 0;
  bool paused_ = false;
};

}  // namespace pageferry
