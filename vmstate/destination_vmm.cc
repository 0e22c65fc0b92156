// The one place that chooses between the kinds.
#include "vmstate/destination_vmm.h"

#include "vmstate/hook_destination_vmm.h"
#include "vmstate/qemu_destination_vmm.h"

namespace pageferry {

std::unique_ptr<DestinationVmm> DestinationVmm::make(const VmManifest& manifest,
                                                     const DestinationPlan& plan,
                                                     const Clock& clock) {
  if (manifest.hook) return std::make_unique<HookDestinationVmm>(manifest, plan, clock);
  return std::make_unique<QemuDestinationVmm>(manifest, plan, clock);
}

}  // namespace pageferry
