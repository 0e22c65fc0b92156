// The one place that chooses between the kinds.
#include "vmstate/source_vmm.h"

#include "vmstate/hook_source_vmm.h"
#include "vmstate/qemu_source_vmm.h"

namespace pageferry {

Result<std::unique_ptr<SourceVmm>> connect_source_vmm(const VmAddress& address,
                                                      const std::string& name, VmmUse use,
                                                      const Clock& clock) {
  if (address.kind == VmmKind::hook) {
    PF_ASSIGN(std::unique_ptr<HookSourceVmm> hook,
              HookSourceVmm::connect(address.socket, name, use, clock));
    return std::unique_ptr<SourceVmm>(std::move(hook));
  }
  PF_ASSIGN(std::unique_ptr<QemuSourceVmm> qemu,
            QemuSourceVmm::connect(address.socket, name, clock));
  return std::unique_ptr<SourceVmm>(std::move(qemu));
}

}  // namespace pageferry
