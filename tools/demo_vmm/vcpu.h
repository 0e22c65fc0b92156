// Vcpu: one virtual CPU, in KVM (KvmVcpu) or played by a thread (ThreadVcpu), and the Doorbells that its guest rings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tools/demo_vmm/guest/guest_format.h"
#include "transport/os/error.h"

namespace pageferry::demo {

// A part of a vCPU's state, as bytes: kinds of a KVM vCPU and of a thread.
struct StatePiece {
  enum class Kind : std::uint32_t { kvm_regs = 1, kvm_sregs = 2, registers = 16 };
  Kind kind = Kind::registers;
  std::vector<std::byte> bytes;
  friend bool operator==(const StatePiece&, const StatePiece&) = default;
};
using VcpuState = std::vector<StatePiece>;

enum class Ask : std::uint8_t { may_wait, now };

// The VMM's side of the ports in guest_format.h. Called on the vCPU's thread; `vcpu` is its number. What a guest asks for is checked
// here: a guest may ask for anything.
class Doorbells {
 public:
  virtual ~Doorbells() = default;
  // Waits at most until the vCPU is to stop.
  virtual Budget budget(std::uint32_t vcpu, Ask ask) = 0;
  virtual void disk(std::uint32_t vcpu) = 0;
  virtual void give_back(std::uint32_t vcpu) = 0;
};

// Thread rule: run() on one thread, kick() on any, the rest while run() is not running.
class Vcpu {
 public:
  virtual ~Vcpu() = default;
  // The guest runs until kick(), then everything that it asked for has been done and answered: save() is whole. Errc::vmm: it cannot
  // run on; the message says why.
  virtual Result<void> run(Doorbells& doorbells) = 0;
  // run() returns soon, also one that is called only now. The caller signals the thread besides, so that a system call ends.
  virtual void kick() = 0;
  virtual void clear_kick() = 0;
  virtual Result<VcpuState> save() = 0;
  // Errc::invalid, and nothing was changed: pieces of another kind or size. Touches no guest memory.
  virtual Result<void> load(const VcpuState& state) = 0;
};

}  // namespace pageferry::demo
