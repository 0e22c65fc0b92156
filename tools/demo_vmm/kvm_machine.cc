// The life of one KVM_RUN. An exit for a port is only finished when KVM_RUN is called again: then the kernel puts the answer into the
// guest's register and moves on behind the instruction. So a vCPU that is kicked is entered once more with `immediate_exit`, which does
// just that and comes back with EINTR; only then are its registers whole. `immediate_exit` also closes the gap in which a signal comes
// after the last look at a flag and before KVM_RUN.
//
// The guest uses general registers and the base of FS, no vectors, no interrupts and no MSRs: REGS and SREGS are all of its state.
#include "tools/demo_vmm/kvm_machine.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace pageferry::demo {
namespace {

constexpr int kKvmApi = 12;

template <typename T>
Result<StatePiece> piece_of(int fd, unsigned long request, StatePiece::Kind kind,
                            std::string_view name) {
  T value{};
  if (::ioctl(fd, request, &value) != 0) return syscall_error(name, "vCPU");
  StatePiece piece{kind, std::vector<std::byte>(sizeof value)};
  std::memcpy(piece.bytes.data(), &value, sizeof value);
  return piece;
}

template <typename T>
bool get(const VcpuState& state, std::size_t index, StatePiece::Kind kind, T& value) {
  if (index >= state.size() || state[index].kind != kind) return false;
  if (state[index].bytes.size() != sizeof value) return false;
  std::memcpy(&value, state[index].bytes.data(), sizeof value);
  return true;
}

void set_long_mode(kvm_sregs& special) {
  kvm_segment segment{};
  segment.limit = 0xffffffff;
  segment.selector = 0x2b;
  segment.dpl = 3;
  segment.type = 3;  // data, writable, accessed
  segment.present = 1;
  segment.s = 1;
  segment.db = 1;
  segment.g = 1;
  special.ds = special.es = special.fs = special.gs = special.ss = segment;
  segment.selector = 0x33;
  segment.type = 11;  // code, readable, accessed
  segment.db = 0;
  segment.l = 1;
  special.cs = segment;
  special.cr3 = kPageTablesAddress;
  special.cr4 = 0x10020;     // PAE, FSGSBASE: the guest keeps a counter in the base of FS
  special.cr0 = 0x80010033;  // PG, WP, NE, ET, MP, PE
  special.efer = 0x500;      // LMA, LME
}

}  // namespace

Result<std::unique_ptr<KvmMachine>> KvmMachine::make(const VmMemory& memory) {
  auto machine = std::make_unique<KvmMachine>();
  machine->kvm_.reset(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!machine->kvm_.valid()) return syscall_error("open", "/dev/kvm");
  if (::ioctl(machine->kvm_.get(), KVM_GET_API_VERSION, 0) != kKvmApi) {
    return fail(Errc::unsupported, "/dev/kvm: not version 12 of its interface");
  }
  machine->vm_.reset(::ioctl(machine->kvm_.get(), KVM_CREATE_VM, 0));
  if (!machine->vm_.valid()) return syscall_error("KVM_CREATE_VM", "/dev/kvm");
  std::uint32_t number = 0;
  for (const MemorySlot& slot : memory.slots()) {
    kvm_userspace_memory_region region{};
    region.slot = number++;
    region.guest_phys_addr = slot.guest_address;
    region.memory_size = slot.size_bytes;
    region.userspace_addr = reinterpret_cast<std::uintptr_t>(slot.host_address);
    if (::ioctl(machine->vm_.get(), KVM_SET_USER_MEMORY_REGION, &region) != 0) {
      return syscall_error("KVM_SET_USER_MEMORY_REGION", slot.name);
    }
  }
  return machine;
}

Result<std::unique_ptr<KvmVcpu>> KvmMachine::add_vcpu(std::uint32_t number) const {
  return KvmVcpu::make(kvm_.get(), vm_.get(), number);
}

Result<std::unique_ptr<KvmVcpu>> KvmVcpu::make(int kvm_fd, int vm_fd, std::uint32_t number) {
  UniqueFd fd(::ioctl(vm_fd, KVM_CREATE_VCPU, static_cast<unsigned long>(number)));
  if (!fd.valid()) return syscall_error("KVM_CREATE_VCPU", fmt::format("vCPU {}", number));
  std::unique_ptr<KvmVcpu> vcpu(new KvmVcpu(std::move(fd), number));
  const int bytes = ::ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
  if (bytes <= 0) return syscall_error("KVM_GET_VCPU_MMAP_SIZE", "/dev/kvm");
  vcpu->run_bytes_ = static_cast<std::size_t>(bytes);
  void* const at =
      ::mmap(nullptr, vcpu->run_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd_.get(), 0);
  if (at == MAP_FAILED) return syscall_error("mmap", "kvm_run");
  vcpu->run_ = static_cast<kvm_run*>(at);
  PF_TRY(vcpu->set_first_registers());
  return vcpu;
}

KvmVcpu::~KvmVcpu() {
  if (run_ != nullptr) ::munmap(run_, run_bytes_);
}

Result<void> KvmVcpu::set_first_registers() {
  kvm_sregs special{};
  if (::ioctl(fd_.get(), KVM_GET_SREGS, &special) != 0)
    return syscall_error("KVM_GET_SREGS", "vCPU");
  set_long_mode(special);
  if (::ioctl(fd_.get(), KVM_SET_SREGS, &special) != 0)
    return syscall_error("KVM_SET_SREGS", "vCPU");
  kvm_regs registers{};
  registers.rip = kCodeAddress;
  registers.rflags = 0x3202;  // its one fixed bit, interrupts (there are none), ports for user mode
  registers.rdi = number_;
  registers.rsp = kStacksAddress + (number_ + 1) * kStackBytes - sizeof(std::uint64_t);
  if (::ioctl(fd_.get(), KVM_SET_REGS, &registers) != 0)
    return syscall_error("KVM_SET_REGS", "vCPU");
  return {};
}

void KvmVcpu::kick() {
  __atomic_store_n(&run_->immediate_exit, std::uint8_t{1}, __ATOMIC_SEQ_CST);
}
void KvmVcpu::clear_kick() {
  __atomic_store_n(&run_->immediate_exit, std::uint8_t{0}, __ATOMIC_SEQ_CST);
}

Result<void> KvmVcpu::run(Doorbells& doorbells) {
  for (;;) {
    if (::ioctl(fd_.get(), KVM_RUN, 0) < 0) {
      if (errno != EINTR && errno != EAGAIN) {
        return syscall_error("KVM_RUN", fmt::format("vCPU {}", number_));
      }
      if (__atomic_load_n(&run_->immediate_exit, __ATOMIC_SEQ_CST) != 0) return {};
      continue;
    }
    if (run_->exit_reason != KVM_EXIT_IO) {
      return stranded();
    }
    PF_TRY(answer_port(doorbells));
  }
}

// An exit that a demo guest never makes: where, and at which instruction.
Result<void> KvmVcpu::stranded() const {
  kvm_regs registers{};
  ::ioctl(fd_.get(), KVM_GET_REGS, &registers);
  std::string text = fmt::format("vCPU {} left KVM at {:#x} for reason {}", number_, registers.rip,
                                 run_->exit_reason);
  if (run_->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
    text += fmt::format(", error {}, data", run_->internal.suberror);
    const std::uint32_t words = std::min<std::uint32_t>(run_->internal.ndata, 4);
    for (std::uint32_t i = 0; i < words; ++i) text += fmt::format(" {:#x}", run_->internal.data[i]);
  }
  return fail(Errc::vmm, text);
}

Result<void> KvmVcpu::answer_port(Doorbells& doorbells) {
  const auto& io = run_->io;
  std::uint32_t value = 0;
  const bool is_in = io.direction == KVM_EXIT_IO_IN;
  std::byte* const data = reinterpret_cast<std::byte*>(run_) + io.data_offset;
  if (io.size != sizeof value || io.count != 1) {
    return fail(Errc::vmm, fmt::format("vCPU {}: port {:#x} with {} times {} bytes", number_,
                                       io.port, io.count, io.size));
  }
  if (is_in && (io.port == kPortBudget || io.port == kPortBudgetNow)) {
    const Ask ask = io.port == kPortBudget ? Ask::may_wait : Ask::now;
    value = doorbells.budget(number_, ask).packed();
    std::memcpy(data, &value, sizeof value);
    return {};
  }
  std::memcpy(&value, data, sizeof value);
  if (!is_in && io.port == kPortDisk) {
    doorbells.disk(number_);
    return {};
  }
  if (!is_in && io.port == kPortGiveBack) {
    doorbells.give_back(number_);
    return {};
  }
  return fail(Errc::vmm,
              fmt::format("vCPU {}: {} port {:#x}, value {} (port {:#x}: no demo guest in memory)",
                          number_, is_in ? "in from" : "out to", io.port, value, kPortImpossible));
}

Result<VcpuState> KvmVcpu::save() {
  using Kind = StatePiece::Kind;
  PF_ASSIGN(StatePiece regs,
            piece_of<kvm_regs>(fd_.get(), KVM_GET_REGS, Kind::kvm_regs, "KVM_GET_REGS"));
  PF_ASSIGN(StatePiece sregs,
            piece_of<kvm_sregs>(fd_.get(), KVM_GET_SREGS, Kind::kvm_sregs, "KVM_GET_SREGS"));
  return VcpuState{std::move(regs), std::move(sregs)};
}

Result<void> KvmVcpu::load(const VcpuState& state) {
  kvm_regs regs{};
  kvm_sregs sregs{};
  const bool fits = state.size() == 2 && get(state, 0, StatePiece::Kind::kvm_regs, regs) &&
                    get(state, 1, StatePiece::Kind::kvm_sregs, sregs);
  if (!fits) {
    return fail(Errc::invalid, fmt::format("vCPU {}: not the state of a KVM vCPU", number_));
  }
  if (::ioctl(fd_.get(), KVM_SET_SREGS, &sregs) != 0) return syscall_error("KVM_SET_SREGS", "vCPU");
  if (::ioctl(fd_.get(), KVM_SET_REGS, &regs) != 0) return syscall_error("KVM_SET_REGS", "vCPU");
  return {};
}

}  // namespace pageferry::demo
