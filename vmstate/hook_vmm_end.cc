// A VMM that was told gets a moment to end as it likes; whatever it answers, its process is gone afterwards.
#include "vmstate/hook_vmm_end.h"

#include "vmstate/qemu_process.h"
#include "vmstate/qemu_spawn.h"

namespace pageferry {
namespace {

constexpr Seconds kEndBound{5};
constexpr Milliseconds kOwnEndWait{1500};

}  // namespace

Result<void> end_hook_vmm(const ProcessIdentity& identity, HookClient* client) {
  const MonotonicClock clock;
  if (client != nullptr) {
    const auto told = client->end(Deadline::after(clock, kEndBound));
    const auto process = open_pidfd(identity);
    if (told && process) has_ended(*process, kOwnEndWait);
  }
  PF_TRY(end_qemu(identity, nullptr, EndBounds{}));
  return {};
}

}  // namespace pageferry
