// The workload is made at the first run and not before: it reads the parameters, whose page an incoming guest still misses.
#include "tools/demo_vmm/thread_vcpu.h"

#include <fmt/core.h>

#include <cstring>
#include <type_traits>

namespace pageferry::demo {

ThreadVcpu::ThreadVcpu(const VmMemory& memory, std::uint32_t number, std::uint64_t seed)
    : memory_(memory), number_(number) {
  saved_.registers = Workload<ThreadVcpu>::first_registers(seed, number);
}

Result<void> ThreadVcpu::run(Doorbells& doorbells) {
  doorbells_ = &doorbells;
  if (!workload_) {
    const auto& parameters = *at<const Parameters>(kParametersAddress);
    const bool is_ours = parameters.magic == kParametersMagic &&
                         parameters.format == kParametersFormat && number_ < parameters.vcpus;
    if (!is_ours) return fail(Errc::vmm, "the guest's memory does not hold a demo guest");
    workload_.emplace(*this, number_);
  }
  while (!kicked_) {
    const Ask ask = workload_->is_busy(saved_.registers) ? Ask::now : Ask::may_wait;
    workload_->run(saved_.registers, doorbells.budget(number_, ask));
  }
  return {};
}

Result<VcpuState> ThreadVcpu::save() {
  static_assert(std::is_trivially_copyable_v<Saved> &&
                std::has_unique_object_representations_v<Saved>);
  StatePiece piece{StatePiece::Kind::registers, std::vector<std::byte>(sizeof saved_)};
  std::memcpy(piece.bytes.data(), &saved_, sizeof saved_);
  return VcpuState{piece};
}

Result<void> ThreadVcpu::load(const VcpuState& state) {
  const bool fits = state.size() == 1 && state[0].kind == StatePiece::Kind::registers &&
                    state[0].bytes.size() == sizeof saved_;
  if (!fits) {
    return fail(Errc::invalid, fmt::format("vCPU {}: not the state of a thread that plays a vCPU "
                                           "({} bytes of registers)",
                                           number_, sizeof saved_));
  }
  std::memcpy(&saved_, state[0].bytes.data(), sizeof saved_);
  workload_.reset();
  return {};
}

}  // namespace pageferry::demo
