// How pages get into a destination QEMU: straight into its memory where that can be done, else in its stream.
//
// Thread rule: functions without state; they use the QmpClient.
#pragma once

#include <cstdint>
#include <optional>

#include "pager/memory_layout.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/qemu_memory_access.h"
#include "vmstate/qmp_client.h"

namespace pageferry {

enum class PagePlacement : std::uint8_t {
  automatic,  // direct where it can be done
  direct,     // through a duplicate of QEMU's userfaultfd (qemu_memory_access.h)
  stream,     // through QEMU's postcopy stream, which every QEMU takes
};

struct QemuPlacement {
  MemoryLayout layout;                     // the destination's: with its backing pages
  PagePlacement placement{};               // direct or stream
  std::optional<QemuMemoryAccess> access;  // where direct
};

// Looks at the destination's RAM blocks and chooses. Errors: invalid (a block that the destination lacks), unsupported (`wanted` is
// direct and cannot be), vmm, timeout, gone.
Result<QemuPlacement> choose_placement(QmpClient& qmp, const MemoryLayout& captured,
                                       PagePlacement wanted, Deadline deadline);

// How another pager has begun to fill this QEMU: pages must go on in the same way. Postcopy-preempt, where QEMU has it, is on with
// the stream and off without (qemu_memory_access.h says why).
Result<PagePlacement> placement_in_use(QmpClient& qmp, Deadline deadline);

inline constexpr int kQemuWithPreempt = 70100;  // 7.1: postcopy-preempt exists

}  // namespace pageferry
