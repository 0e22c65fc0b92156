// HookLook: VMMs with a hook on this host that may have to do with a VM: where their sockets may be, and one look at each. Records name a
// process and no socket, so every place that knows one is asked: the user's word, run directories of VMMs that we started, and the
// manifests of attempts that this host made in this boot.
//
// An observer's look: it disturbs nobody who moves or restores the guest.
//
// Thread rule: functions without state; they block for seconds at most.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tools/pageferry/hand_off.h"
#include "transport/hand_off_rules.h"
#include "transport/os/clock.h"
#include "vmstate/hook_client.h"
#include "vmstate/vm_address.h"

namespace pageferry {

struct HookLook {
  std::string socket;
  ProcessIdentity process;
  HookState state = HookState::running;
  std::string attempt_id;  // that was loaded, or ""

  // Waits for a guest that nobody has given it.
  bool is_empty() const { return state == HookState::incoming && attempt_id.empty(); }
  bool waits_for_pages() const {
    return state == HookState::restoring || (state == HookState::incoming && !attempt_id.empty());
  }
};

// As the hand-off rules see it.
VmmState vmm_state_of(const HookLook& look);
// Of the images that rule 4 could give now, the one that was loaded there; nullopt: none of them.
std::optional<ImageRef> loaded_image(const HookLook& look, const OwnershipSnapshot& snapshot);

// Those that answer. A socket that nobody answers at is passed over: whoever is behind it is named by the records, or is nobody.
std::vector<HookLook> find_hook_vmms(const std::string& run_dir, const std::string& vm_name,
                                     const std::optional<VmAddress>& named_by_user,
                                     const HandOff& hand_off, const Clock& clock);

}  // namespace pageferry
