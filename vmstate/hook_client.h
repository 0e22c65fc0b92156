// HookClient: the pager's end of the socket that a VMM's hook serves (docs/hook-protocol.md): who the VM is, where its memory lies, and
// each step of a move that only the VMM can do. The hook sits in tools/vmm_hook and is trusted no more than a file: what it says is
// checked before use.
//
//   mover      connect -> start_tracking -> collect_into ... -> pause -> collect_into -> save_state -> commit -> end
//                                                                                            (or, as the next epoch's owner: resume)
//   restorer   connect -> take_userfault -> load_state -> resume -> resident
//   observer   connect; vm() and the shared segment, beside a mover or a restorer
//
// The pause is tied to the connection: when it closes before commit(), whyever, the hook resumes the guest. commit() and give_up() exclude
// each other for good, in one atomic step.
//
// Thread rule: requests from one thread; give_up() and connection_fd() from any. Lifetime: owns the connection; the descriptor stays open
// until destruction, so that a late give_up() never hits one that was given to somebody else.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pager/dirty_bitmap.h"
#include "pager/memory_layout.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "vmstate/hook_progress.h"
#include "vmstate/hook_protocol.h"

namespace pageferry {

// Where a block of the layout lies, in the same order.
struct HookSlot {
  std::uint64_t guest_address = 0;
  std::uint64_t host_address = 0;  // in the VMM's address space
  UniqueFd memory;  // for reading only; invalid: anonymous memory of the VMM's process
  std::uint64_t memory_offset_bytes = 0;
};

struct HookVm {
  std::string name;
  std::string machine;
  HookState state = HookState::running;
  MemoryLayout layout;
  std::vector<HookSlot> slots;
  std::vector<std::string> incoming_command;  // may be empty; {socket} stands for the path
  // Of the last commit or resume here; 0: there was none.
  std::uint64_t epoch = 0;
  std::string attempt_id;  // of the state that was loaded; "" when none was
  // As hook_protocol::GuestFacts.
  std::string tracked_since_attempt;
  // Of pages that are missing, for restorers.
  hook_protocol::PagePlacing placing = hook_protocol::PagePlacing::plain;
  pid_t pid = 0;  // the VMM, as the kernel says (SO_PEERCRED)
};

class HookClient {
 public:
  using Role = HookRole;

  // Connects, agrees on a version, learns vm(). Errors: not_found (no socket, or nobody listens), busy (another pager is connected),
  // version, not_owner (a VMM of another user, and we are not root), invalid (what the hook says is wrong), timeout, gone.
  static Result<std::unique_ptr<HookClient>> connect(const std::string& socket_path, Role role,
                                                     Deadline deadline);
  virtual ~HookClient() = default;

  virtual const HookVm& vm() const = 0;
  // Readable when the hook has closed it; nothing is ever sent unasked.
  virtual int connection_fd() const = 0;

  // What state, epoch and attempt are now; vm() has them afterwards. Any role.
  virtual Result<void> refresh(Deadline deadline) = 0;
  // mover, restorer: observers may look at it from now on, also when we are gone.
  virtual Result<void> share_progress(const HookProgressWriter& progress, Deadline deadline) = 0;
  // Of the mover or restorer that shared its progress last. Errors: not_found (nobody did).
  virtual Result<HookProgressReader> progress(Deadline deadline) = 0;
  // Pages that the VMM gave back while pages were missing (they are zero, and there): added to `removed`. Reads shared memory, asks nobody.
  // Precondition: as many pages as vm().layout.
  virtual void removed_into(DirtyBitmap& removed) const = 0;

  // All requests: gone (the VMM closed or ended), timeout (no answer; the connection is of no use any more), canceled (after
  // give_up()), vmm (the hook or a callback refused: its words), invalid (the answer is wrong).

  // mover
  // `since_attempt`: pages that hold what that attempt's image has are left out of the first collection. Empty: it names all.
  // Errors: not_found (not every write since then is known: vm().tracked_since_attempt).
  virtual Result<void> start_tracking(Deadline deadline, const std::string& since_attempt = {}) = 0;
  // Adds what was written since the last call, or everything the first time; but no page that is missing (the guest is being restored):
  // such a one is named by a collection after it has come. Precondition: as many pages as vm().layout.
  virtual Result<void> collect_into(DirtyBitmap& dirty, Deadline deadline) = 0;
  virtual Result<void> stop_tracking(Deadline deadline) = 0;
  // `blackout_limit`, if not 0: when that much time has passed since the hook took the request, and commit() has not come, the hook resumes
  // the guest by itself, keeps tracking, and refuses commit(). For a pager that is stopped itself. vmm: also while pages are missing.
  virtual Result<void> pause(Deadline deadline,
                             Milliseconds blackout_limit = Milliseconds::zero()) = 0;
  virtual Result<std::vector<std::byte>> save_state(Deadline deadline) = 0;
  // From here on a closed connection does not resume the guest. `epoch`: that is being released. When this returns an error other than
  // canceled or vmm (refused: nothing was committed), the outcome is unknown: vm().state of a new connection tells.
  virtual Result<void> commit(std::uint64_t epoch, Deadline deadline) = 0;
  // The guest runs, as epoch `epoch`: later than any epoch that was committed here. The caller's running record is durable.
  virtual Result<void> resume(std::uint64_t epoch, Deadline deadline) = 0;
  // After commit(): the guest runs elsewhere; the VMM may end.
  virtual Result<void> end(Deadline deadline) = 0;
  // Closes the connection: the hook resumes the guest. Never blocks. False: commit() was first, nothing was done.
  virtual bool give_up() = 0;

  // restorer
  // A duplicate; does not block (O_NONBLOCK).
  virtual Result<UniqueFd> take_userfault(Deadline deadline) = 0;
  virtual Result<void> load_state(std::span<const std::byte> state, const std::string& attempt_id,
                                  Deadline deadline) = 0;
  // Every page is there: the hook looks by itself, and closes its userfaultfd. vmm: it misses some.
  virtual Result<void> resident(Deadline deadline) = 0;
};

}  // namespace pageferry
