// ThreadVcpu: a vCPU played by a thread: the same Workload on the same memory, where there is no KVM. Its registers are fields here.
//
// A page that is missing makes the thread wait inside the workload; such a vCPU stops only when the page is there.
//
// Thread rule: as Vcpu. Lifetime: the memory's is longer.
#pragma once

#include <atomic>
#include <optional>

#include "tools/demo_vmm/guest/workload.h"
#include "tools/demo_vmm/vcpu.h"
#include "tools/demo_vmm/vm_memory.h"

namespace pageferry::demo {

class ThreadVcpu final : public Vcpu {
 public:
  ThreadVcpu(const VmMemory& memory, std::uint32_t number, std::uint64_t seed);

  Result<void> run(Doorbells& doorbells) override;
  void kick() override { kicked_ = true; }
  void clear_kick() override { kicked_ = false; }
  Result<VcpuState> save() override;
  Result<void> load(const VcpuState& state) override;

  // --- the Machine of Workload ---
  template <typename T>
  T* at(std::uint64_t address) const {
    std::byte* const found = memory_.at(address, sizeof(T));
    PF_CHECK(found != nullptr);
    return reinterpret_cast<T*>(found);
  }
  std::uint64_t heartbeats() const { return saved_.heartbeats; }
  void set_heartbeats(std::uint64_t value) { saved_.heartbeats = value; }
  void ring_disk() { doorbells_->disk(number_); }
  void ring_give_back() { doorbells_->give_back(number_); }

 private:
  struct Saved {  // whole words: written to the state as they are
    Registers registers;
    std::uint64_t heartbeats = 0;
  };

  const VmMemory& memory_;
  const std::uint32_t number_;
  Saved saved_;
  Doorbells* doorbells_ = nullptr;  // of the run() that goes on
  std::optional<Workload<ThreadVcpu>> workload_;
  std::atomic<bool> kicked_ = false;
};

}  // namespace pageferry::demo
