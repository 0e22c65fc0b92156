// KvmMachine: a VM in KVM with our slots and vCPUs, and nothing else: no interrupt controller, no clock, no firmware.
//
// Thread rule: constant after make(); a vCPU as Vcpu says. Lifetime: the memory's is longer; vCPUs must be gone before.
#pragma once

#include <linux/kvm.h>

#include <memory>

#include "tools/demo_vmm/vcpu.h"
#include "tools/demo_vmm/vm_memory.h"
#include "transport/os/fd.h"

namespace pageferry::demo {

class KvmVcpu final : public Vcpu {
 public:
  // Ready to begin at kCodeAddress in 64-bit mode. Touches no guest memory.
  static Result<std::unique_ptr<KvmVcpu>> make(int kvm_fd, int vm_fd, std::uint32_t number);
  ~KvmVcpu() override;
  KvmVcpu(const KvmVcpu&) = delete;
  KvmVcpu& operator=(const KvmVcpu&) = delete;

  Result<void> run(Doorbells& doorbells) override;
  void kick() override;
  void clear_kick() override;
  Result<VcpuState> save() override;
  Result<void> load(const VcpuState& state) override;

 private:
  KvmVcpu(UniqueFd fd, std::uint32_t number) : fd_(std::move(fd)), number_(number) {}
  Result<void> set_first_registers();
  Result<void> answer_port(Doorbells& doorbells);
  Result<void> stranded() const;

  UniqueFd fd_;
  const std::uint32_t number_;
  kvm_run* run_ = nullptr;  // shared with the kernel
  std::size_t run_bytes_ = 0;
};

class KvmMachine {
 public:
  // Errc::unsupported or an error of the system: KVM is not there or not ours to use.
  static Result<std::unique_ptr<KvmMachine>> make(const VmMemory& memory);
  Result<std::unique_ptr<KvmVcpu>> add_vcpu(std::uint32_t number) const;
  // Slot i of the memory is KVM's slot i.
  int vm_fd() const { return vm_.get(); }

 private:
  UniqueFd kvm_;
  UniqueFd vm_;
};

}  // namespace pageferry::demo
