// Vm: a demo guest with all that it runs on: memory, vCPUs, disk, balloon, pace. Knows nothing of pageferry; whoever moves it (the hook's
// glue, or a test) uses pause, resume, save, load, and the GuestWrites.
//
//   made ── boot() ──► paused ◄── pause() / resume() ──► running            made ── load() ──► paused
//
// Thread rule: internally locked; check_all(), status() and flip() beside the rest. Lifetime: the listener's is longer, or set to null.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "tools/demo_vmm/disk.h"
#include "tools/demo_vmm/guest_plan.h"
#include "tools/demo_vmm/guest_writes.h"
#include "tools/demo_vmm/kvm_machine.h"
#include "tools/demo_vmm/pacer.h"
#include "tools/demo_vmm/vcpu_threads.h"
#include "tools/demo_vmm/vm_memory.h"
#include "tools/demo_vmm/vm_state.h"
#include "transport/os/clock.h"

namespace pageferry::demo {

struct VmSettings {
  GuestNumbers guest;
  MemoryKind memory_kind = MemoryKind::memfd;
  VcpuKind vcpu_kind = VcpuKind::kvm;
  Rates rates;  // of a guest that is booted here; another brings its own
  std::string disk_path;
};

// What the balloon takes at once: whole huge pages where the memory has them.
constexpr std::uint64_t give_back_bytes(MemoryKind kind) {
  const bool is_huge = kind == MemoryKind::transparent_huge || kind == MemoryKind::hugetlb;
  return is_huge ? kGuestHugeBytes : kGuestPageBytes;
}

enum class RunState : std::uint8_t { paused, running, failed };

struct VmStatus {
  RunState run_state = RunState::paused;
  std::string failure;  // of a vCPU, or of the balloon
  Report
      report{};  // added up; `checks`, `filled`: the least of all vCPUs; first bad: of the lowest vCPU
  std::uint64_t given_back_bytes = 0;
  // From resume() to the first doorbell that the guest rang: it had run by then. Zero: none yet.
  Nanoseconds first_word_after{0};
};

class Vm final : private Doorbells, private GuestWrites {
 public:
  // Maps memory without touching it. Errors: invalid numbers, no huge pages, no KVM, no disk.
  static Result<std::unique_ptr<Vm>> make(const VmSettings& settings);
  ~Vm() override;
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  const VmMemory& memory() const { return memory_; }
  const VmSettings& settings() const { return settings_; }
  // Of this VMM and the guest's machine, in words: equal for VMMs that can take each other's guests.
  std::string machine_text() const;
  // -1: no KVM.
  int kvm_vm_fd() const { return machine_ ? machine_->vm_fd() : -1; }
  void set_listener(GuestWrites* listener) { listener_ = listener; }

  // Puts the guest into memory. Before the first resume().
  void boot();
  // Returns when no vCPU runs and the disk does not write. On an error the guest runs as before.
  Result<void> pause();
  // vmm: a vCPU had failed; it says why.
  Result<void> resume();
  // Precondition of both: paused. load() touches no guest memory; when it fails nothing was changed... but by KVM itself, which never
  // refused what it gave (kvm_machine.cc).
  Result<std::vector<std::byte>> save();
  Result<void> load(std::span<const std::byte> bytes);

  // As the guest said when it last asked for work; touches no guest memory.
  VmStatus status() const;
  // Returns when a vCPU has reported again, or after `limit`.
  void wait_for_report(Nanoseconds limit) const;
  // The guest checks all of its memory, from now on to the end. timeout: it did not come to the end. canceled: end_checks().
  Result<VmStatus> check_all(Deadline deadline);
  // For good.
  void end_checks() { checks_ended_ = true; }
  // Fault switch: flips one bit of guest memory. The guest must notice. invalid: no such address. May wait for a missing page.
  Result<void> flip(std::uint64_t guest_address, unsigned bit);

 private:
  Vm(const VmSettings& settings, GuestPlan plan, VmMemory memory);
  Result<void> add_vcpus();

  Budget budget(std::uint32_t vcpu, Ask ask) override;
  void disk(std::uint32_t vcpu) override;
  void give_back(std::uint32_t vcpu) override;
  void written(std::uint64_t guest_address, std::uint64_t bytes) override;
  void given_back(std::uint64_t guest_address, std::uint64_t bytes) override;

  // What is known of a vCPU's guest.
  struct Seen {
    Report report{};
    bool check_wanted = false;
    std::uint64_t check_target = 0;  // `checks` at the end of the check that was wanted
    std::uint32_t turn = 0;          // of the last answer
  };
  const VcpuPage& page_of(std::uint32_t vcpu) const;

  const VmSettings settings_;
  const GuestPlan plan_;
  VmMemory memory_;
  std::atomic<GuestWrites*> listener_ = nullptr;
  std::atomic<bool> checks_ended_ = false;
  Pacer pacer_;
  mutable std::mutex mutex_;  // of the next six
  mutable std::condition_variable reported_;
  std::vector<Seen> seen_;
  std::uint64_t given_back_bytes_ = 0;
  std::string balloon_failure_;
  Nanoseconds resumed_at_{0};
  Nanoseconds first_word_after_{0};
  std::mutex control_;  // of pause, resume, save, load
  std::atomic<RunState> run_state_ = RunState::paused;
  std::unique_ptr<KvmMachine> machine_;
  std::unique_ptr<Disk> disk_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  std::unique_ptr<VcpuThreads> threads_;
};

}  // namespace pageferry::demo
