// The bare guest: 64-bit code without operating system, library, interrupts or timer. Each vCPU begins in guest_main with its number, runs
// its Workload and asks the VMM for more. Built as a flat image for kCodeAddress (guest.ld). The base of FS, which nothing here uses, holds
// a second copy of the heartbeat counter: vCPU state that is in no memory.
//
// It runs in user mode, with the right to use ports (IOPL 3), and needs nothing else of a CPU. A KVM that has no hardware below it (PVM)
// runs user mode as it is; it would emulate every instruction of a kernel that does not know it, 500 times slower.
#include "tools/demo_vmm/guest/workload.h"

namespace pageferry::demo {
namespace {

std::uint32_t in(std::uint16_t port) {
  std::uint32_t value = 0;
  asm volatile("inl %w1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}
void out(std::uint16_t port, std::uint32_t value) {
  asm volatile("outl %0, %w1" : : "a"(value), "Nd"(port) : "memory");
}

class BareMachine {
 public:
  template <typename T>
  T* at(std::uint64_t address) const {
    return reinterpret_cast<T*>(address);  // the page tables map one to one
  }
  std::uint64_t heartbeats() const {
    std::uint64_t value = 0;
    asm volatile("rdfsbase %0" : "=r"(value));
    return value;
  }
  void set_heartbeats(std::uint64_t value) const { asm volatile("wrfsbase %0" : : "r"(value)); }
  void ring_disk() const { out(kPortDisk, 1); }
  void ring_give_back() const { out(kPortGiveBack, 1); }
};

}  // namespace

// The one symbol that the linker script puts first.
extern "C" [[noreturn, gnu::section(".text.entry")]] void guest_main(std::uint32_t vcpu) {
  BareMachine machine;
  const Parameters& parameters = *machine.at<const Parameters>(kParametersAddress);
  const bool is_ours = parameters.magic == kParametersMagic &&
                       parameters.format == kParametersFormat && vcpu < parameters.vcpus;
  while (!is_ours) out(kPortImpossible, __LINE__);
  Workload<BareMachine> workload(machine, vcpu);
  Registers registers = Workload<BareMachine>::first_registers(parameters.seed, vcpu);
  for (;;) {
    const std::uint16_t port = workload.is_busy(registers) ? kPortBudgetNow : kPortBudget;
    workload.run(registers, Budget::of(in(port)));
  }
}

}  // namespace pageferry::demo
