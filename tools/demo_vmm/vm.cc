// The order of stopping: vCPUs first, because they give work to the disk; then the disk; then nothing writes into guest memory. Starting
// goes the other way round.
//
// What the guest asks for at a doorbell lies in its memory. It has just written it, so the page is there, also while others are missing.
#include "tools/demo_vmm/vm.h"

#include <fmt/core.h>

#include <algorithm>

#include "tools/demo_vmm/guest_boot.h"
#include "tools/demo_vmm/thread_vcpu.h"

namespace pageferry::demo {

Result<std::unique_ptr<Vm>> Vm::make(const VmSettings& settings) {
  GuestNumbers numbers = settings.guest;
  numbers.give_back_bytes = give_back_bytes(settings.memory_kind);
  PF_ASSIGN(GuestPlan plan, plan_guest(numbers));
  PF_ASSIGN(VmMemory memory, VmMemory::map(plan.slots, settings.memory_kind));
  std::unique_ptr<Vm> vm(new Vm(settings, std::move(plan), std::move(memory)));
  if (settings.guest.disk_bytes != 0) {
    PF_ASSIGN(vm->disk_,
              Disk::open(settings.disk_path, settings.guest.disk_bytes, vm->memory_, *vm));
  }
  PF_TRY(vm->add_vcpus());
  Doorbells& doorbells = *vm;
  vm->threads_ = std::make_unique<VcpuThreads>(vm->vcpus_, doorbells);
  return vm;
}

Vm::Vm(const VmSettings& settings, GuestPlan plan, VmMemory memory)
    : settings_(settings),
      plan_(std::move(plan)),
      memory_(std::move(memory)),
      pacer_(settings.rates, settings.guest.vcpus),
      seen_(settings.guest.vcpus) {}

Vm::~Vm() {
  pacer_.hurry();
  threads_.reset();
}

Result<void> Vm::add_vcpus() {
  if (settings_.vcpu_kind == VcpuKind::kvm) {
    PF_ASSIGN(machine_, KvmMachine::make(memory_));
  }
  for (std::uint32_t number = 0; number < settings_.guest.vcpus; ++number) {
    if (machine_) {
      PF_ASSIGN(auto vcpu, machine_->add_vcpu(number));
      vcpus_.push_back(std::move(vcpu));
    } else {
      vcpus_.push_back(std::make_unique<ThreadVcpu>(memory_, number, settings_.guest.seed));
    }
  }
  return {};
}

std::string Vm::machine_text() const {
  return fmt::format("pageferry-demo-vmm 1, guest format {}, {}, {} vCPUs, {} KiB disk",
                     kParametersFormat, machine_ ? "KVM x86-64" : "threads", settings_.guest.vcpus,
                     settings_.guest.disk_bytes >> 10);
}

void Vm::boot() {
  boot_guest(plan_, memory_);
}

// --- stopping and starting ---

Result<void> Vm::pause() {
  const std::lock_guard lock(control_);
  if (run_state_ == RunState::paused) return {};
  pacer_.hurry();
  threads_->pause();
  const Result<void> drained = disk_ ? disk_->pause() : Result<void>();
  if (drained) {
    run_state_ = RunState::paused;
    return {};
  }
  disk_->resume();
  pacer_.relax();
  threads_->resume();
  return drained;
}

Result<void> Vm::resume() {
  const std::lock_guard lock(control_);
  if (const std::string failure = threads_->failure(); !failure.empty()) {
    return fail(Errc::vmm, failure);
  }
  {
    const std::lock_guard seen(mutex_);
    resumed_at_ = MonotonicClock().now();
    first_word_after_ = Nanoseconds(0);
  }
  if (disk_) disk_->resume();
  pacer_.relax();
  threads_->resume();
  run_state_ = RunState::running;
  return {};
}

Result<std::vector<std::byte>> Vm::save() {
  const std::lock_guard lock(control_);
  PF_CHECK(run_state_ == RunState::paused);
  if (const std::string failure = threads_->failure(); !failure.empty()) {
    return fail(Errc::vmm, failure);
  }
  VmState state;
  state.kind = settings_.vcpu_kind;
  state.rates = pacer_.rates();
  {
    const std::lock_guard seen(mutex_);
    state.given_back_bytes = given_back_bytes_;
    for (std::size_t i = 0; i < seen_.size(); ++i) state.turns |= seen_[i].turn << i;
  }
  if (disk_) state.disk_queue = disk_->queue();
  for (const auto& vcpu : vcpus_) {
    PF_ASSIGN(VcpuState saved, vcpu->save());
    state.vcpus.push_back(std::move(saved));
  }
  return encode_vm_state(state);
}

Result<void> Vm::load(std::span<const std::byte> bytes) {
  const std::lock_guard lock(control_);
  PF_CHECK(run_state_ == RunState::paused);
  PF_ASSIGN(const VmState state, decode_vm_state(bytes));
  if (state.kind != settings_.vcpu_kind || state.vcpus.size() != vcpus_.size()) {
    return fail(Errc::invalid,
                fmt::format("the state is of {} vCPUs {}, this VMM has {} {}", state.vcpus.size(),
                            state.kind == VcpuKind::kvm ? "in KVM" : "on threads", vcpus_.size(),
                            machine_ ? "in KVM" : "on threads"));
  }
  if (!state.disk_queue.empty() && !disk_) {
    return fail(Errc::invalid, "the state has disk requests, this VMM has no disk");
  }
  for (std::size_t i = 0; i < vcpus_.size(); ++i) PF_TRY(vcpus_[i]->load(state.vcpus[i]));
  if (disk_) disk_->set_queue(state.disk_queue);
  pacer_.set_rates(state.rates);
  const std::lock_guard seen(mutex_);
  given_back_bytes_ = state.given_back_bytes;
  for (std::size_t i = 0; i < seen_.size(); ++i) seen_[i].turn = state.turns >> i & 1;
  return {};
}

// --- what the guest says ---

const VcpuPage& Vm::page_of(std::uint32_t vcpu) const {
  const std::uint64_t address = kVcpuPagesAddress + vcpu * kGuestPageBytes;
  return *reinterpret_cast<const VcpuPage*>(memory_.at(address, sizeof(VcpuPage)));
}

VmStatus Vm::status() const {
  VmStatus status;
  status.failure = threads_->failure();
  const std::lock_guard lock(mutex_);
  if (status.failure.empty()) status.failure = balloon_failure_;
  status.run_state = status.failure.empty() ? run_state_.load() : RunState::failed;
  status.given_back_bytes = given_back_bytes_;
  status.first_word_after = first_word_after_;
  Report& sum = status.report;
  sum.checks = ~std::uint64_t{0};
  sum.filled = 1;
  for (const Seen& seen : seen_) {
    const Report& one = seen.report;
    sum.heartbeats += one.heartbeats;
    sum.pages_written += one.pages_written;
    sum.pages_verified += one.pages_verified;
    sum.pages_given_back += one.pages_given_back;
    sum.blocks_written += one.blocks_written;
    sum.blocks_verified += one.blocks_verified;
    sum.checks = std::min(sum.checks, one.checks);
    sum.filled = std::min(sum.filled, one.filled);
    sum.bad += one.bad;
    if (sum.first_bad_kind == BadKind::none) {
      sum.first_bad_kind = one.first_bad_kind;
      sum.first_bad_address = one.first_bad_address;
    }
  }
  return status;
}

void Vm::wait_for_report(Nanoseconds limit) const {
  std::unique_lock lock(mutex_);
  reported_.wait_for(lock, limit);
}

Result<VmStatus> Vm::check_all(Deadline deadline) {
  {
    std::unique_lock lock(mutex_);
    for (Seen& seen : seen_) {
      seen.check_wanted = true;
      seen.check_target = ~std::uint64_t{0};
    }
    const auto is_done = [this] {
      return std::all_of(seen_.begin(), seen_.end(), [](const Seen& seen) {
        return !seen.check_wanted && seen.report.checks >= seen.check_target;
      });
    };
    while (!is_done()) {
      if (checks_ended_) return fail(Errc::canceled, "this VMM ends");
      if (deadline.passed()) {
        return fail(Errc::timeout, "the guest did not come to the end of its check");
      }
      reported_.wait_for(lock, Milliseconds(std::clamp(deadline.poll_timeout_ms(), 1, 100)));
    }
  }
  return status();
}

Result<void> Vm::flip(std::uint64_t guest_address, unsigned bit) {
  std::byte* const at = memory_.at(guest_address, 1);
  if (at == nullptr || bit > 7) {
    return fail(Errc::invalid,
                fmt::format("flip: no bit {} at guest address {:#x}", bit, guest_address));
  }
  __atomic_fetch_xor(reinterpret_cast<unsigned char*>(at), static_cast<unsigned char>(1U << bit),
                     __ATOMIC_SEQ_CST);
  return {};
}

// --- doorbells ---

Budget Vm::budget(std::uint32_t vcpu, Ask ask) {
  bool check = false;
  {
    const std::lock_guard lock(mutex_);
    if (first_word_after_ == Nanoseconds(0)) {
      first_word_after_ = MonotonicClock().now() - resumed_at_;
    }
    Seen& seen = seen_[vcpu];
    seen.report = page_of(vcpu).report;
    if (std::exchange(seen.check_wanted, false)) {
      check = true;
      seen.check_target = seen.report.checks + 1;
    }
  }
  reported_.notify_all();
  Budget budget = pacer_.next(vcpu, check ? Ask::now : ask);
  budget.check = check ? 1 : 0;
  const std::lock_guard lock(mutex_);
  budget.turn = seen_[vcpu].turn ^= 1;
  return budget;
}

void Vm::disk(std::uint32_t vcpu) {
  if (!disk_) return;
  const DiskRequest request = page_of(vcpu).request;
  disk_->submit(
      {vcpu, request.number, request.block, static_cast<std::uint32_t>(request.operation)});
}

void Vm::give_back(std::uint32_t vcpu) {
  const GiveBack wanted = page_of(vcpu).give_back;
  Result<void> done = fail(Errc::invalid, fmt::format("balloon: no memory of {} bytes at {:#x}",
                                                      wanted.bytes, wanted.address));
  if (memory_.at(wanted.address, wanted.bytes) != nullptr) {
    done = memory_.give_back(wanted.address, wanted.bytes);
  }
  if (done) given_back(wanted.address, wanted.bytes);
  const std::lock_guard lock(mutex_);
  if (done) given_back_bytes_ += wanted.bytes;
  if (!done && balloon_failure_.empty()) balloon_failure_ = done.error().message;
}

// --- writes that are no vCPU's ---

void Vm::written(std::uint64_t guest_address, std::uint64_t bytes) {
  if (GuestWrites* const listener = listener_) listener->written(guest_address, bytes);
}

void Vm::given_back(std::uint64_t guest_address, std::uint64_t bytes) {
  if (GuestWrites* const listener = listener_) listener->given_back(guest_address, bytes);
}

}  // namespace pageferry::demo
