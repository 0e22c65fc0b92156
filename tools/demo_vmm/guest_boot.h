// Puts a guest that has not run yet into its memory: parameters, and for KVM code and page tables. What it writes is guest memory and
// moves with it; an incoming VMM never calls this.
//
// Thread rule: before the first vCPU runs.
#pragma once

#include "tools/demo_vmm/guest_plan.h"
#include "tools/demo_vmm/vm_memory.h"

namespace pageferry::demo {

// Precondition: `memory` was mapped from plan.slots.
void boot_guest(const GuestPlan& plan, const VmMemory& memory);

}  // namespace pageferry::demo
