// HookGlue: everything that makes this VMM one that pageferry can move. docs/vmm-hook.md walks through it, line by line; a VMM of your
// own needs the same few things, from its own pause, resume, save and load.
//
// Thread rule: start and stop on one thread; the rest any. Lifetime: the Vm outlives it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>

#include "tools/demo_vmm/guest_writes.h"
#include "tools/demo_vmm/vm.h"
#include "tools/vmm_hook/pageferry_hook.h"

namespace pageferry::demo {

enum class Beginning : std::uint8_t { own_guest, incoming };

struct HookSettings {
  std::string socket_path;
  std::string vm_name;
  Beginning beginning = Beginning::own_guest;
  pageferry_dirty_source dirty_source = PAGEFERRY_DIRTY_AUTOMATIC;
  // Words; may be empty. They start a VMM like this one as incoming, and a new pager when one died in a restore; {socket} is filled in.
  std::vector<std::string> incoming_command;
  std::vector<std::string> pager_command;
};

class HookGlue final : public GuestWrites {
 public:
  // Before the guest runs for the first time. For an incoming VMM: from here on only the hook starts the guest.
  // `moved_away`: called on the hook's thread when this VMM is not needed any more.
  static Result<std::unique_ptr<HookGlue>> start(Vm& vm, const HookSettings& settings,
                                                 std::function<void()> moved_away);
  // Before this object and the Vm may go. busy: pages are still missing, and without the hook the guest would read zeros: end the
  // process instead. The guest stands afterwards.
  Result<void> stop();

  // "running", "moving", ... as pageferry_hook_state.
  const char* state_name() const;

  // Of the devices and the balloon.
  void written(std::uint64_t guest_address, std::uint64_t bytes) override;
  void given_back(std::uint64_t guest_address, std::uint64_t bytes) override;

 private:
  HookGlue(Vm& vm, std::function<void()> moved_away)
      : vm_(vm), moved_away_(std::move(moved_away)) {}
  static pageferry_hook_callbacks callbacks();
  std::vector<pageferry_memory_slot> slots() const;

  Vm& vm_;
  std::function<void()> moved_away_;
  std::atomic<pageferry_hook*> hook_ = nullptr;
};

}  // namespace pageferry::demo
