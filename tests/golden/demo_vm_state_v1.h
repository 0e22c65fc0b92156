// What tests/golden/demo_vm_state_v1.bin holds.
#pragma once

#include "tools/demo_vmm/vm_state.h"

namespace pageferry::testing_support {

inline demo::VmState demo_vm_state_v1() {
  using demo::StatePiece;
  demo::VmState state;
  state.kind = demo::VcpuKind::kvm;
  state.rates = {
      .write_pages = 12'800, .read_pages = 25'600, .disk_requests = 100, .give_backs = 3};
  state.given_back_bytes = 0x123'4000;
  state.turns = 2;
  state.disk_queue = {{.vcpu = 1, .number = 17, .block = 4, .operation = 2},
                      {.vcpu = 0, .number = 18, .block = 5, .operation = 1}};
  for (int vcpu = 0; vcpu < 2; ++vcpu) {
    const auto first = static_cast<std::byte>(0x10 + vcpu);
    state.vcpus.push_back(
        {StatePiece{StatePiece::Kind::kvm_regs, std::vector<std::byte>(144, first)},
         StatePiece{StatePiece::Kind::kvm_sregs, std::vector<std::byte>(312, std::byte{0x55})}});
  }
  return state;
}

}  // namespace pageferry::testing_support
