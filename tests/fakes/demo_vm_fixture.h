// Demo VMs for tests: small guests, waits for what they report, and copies of their memory.
//
// A wait ends when the guest has reported what is waited for; the bound on it is only there so that a test that fails does not hang.
// Thread rule: one thread, the test's.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tools/demo_vmm/vm.h"

namespace pageferry::testing_support {

inline const MonotonicClock kDemoClock;

// KVM is left out where it is not there; tests/kernel/CMakeLists.txt says so aloud.
inline std::vector<demo::VcpuKind> kinds_here() {
#ifdef PAGEFERRY_TEST_WITH_KVM
  return {demo::VcpuKind::threads, demo::VcpuKind::kvm};
#else
  return {demo::VcpuKind::threads};
#endif
}

inline demo::VmSettings small_guest(demo::VcpuKind kind) {
  demo::VmSettings settings;
  settings.guest.memory_bytes = std::uint64_t{24} << 20;
  settings.guest.seed = 42;
  settings.vcpu_kind = kind;
  settings.rates = {.write_pages = 1'000'000, .read_pages = 200'000};
  return settings;
}

inline void add_disk(demo::VmSettings& settings, const std::string& path) {
  settings.disk_path = path;
  settings.guest.disk_bytes = std::uint64_t{1} << 20;
  settings.rates.disk_requests = 2'000;
}

inline std::unique_ptr<demo::Vm> made(const demo::VmSettings& settings) {
  auto vm = demo::Vm::make(settings);
  if (!vm) {
    ADD_FAILURE() << vm.error().message;
    std::abort();
  }
  return std::move(*vm);
}

inline std::unique_ptr<demo::Vm> booted(const demo::VmSettings& settings) {
  auto vm = made(settings);
  vm->boot();
  const auto resumed = vm->resume();
  EXPECT_TRUE(resumed) << resumed.error().message;
  return vm;
}

inline void wait_until(const demo::Vm& vm,
                       const std::function<bool(const demo::VmStatus&)>& is_there) {
  const Deadline deadline = Deadline::after(kDemoClock, Seconds(60));
  for (demo::VmStatus status = vm.status(); !is_there(status); status = vm.status()) {
    ASSERT_NE(status.run_state, demo::RunState::failed) << status.failure;
    ASSERT_FALSE(deadline.passed()) << "the guest did not come that far";
    vm.wait_for_report(Milliseconds(50));
  }
}

inline demo::VmStatus checked(demo::Vm& vm) {
  if (vm.status().failure.empty()) {
    const auto status = vm.check_all(Deadline::after(kDemoClock, Seconds(60)));
    if (status) return *status;
    ADD_FAILURE() << status.error().message;
  }
  ADD_FAILURE() << vm.status().failure;
  return vm.status();
}

// A copy of each slot. Precondition: paused.
inline std::vector<std::vector<std::byte>> memory_of(const demo::Vm& vm) {
  std::vector<std::vector<std::byte>> slots;
  for (const demo::MemorySlot& slot : vm.memory().slots()) {
    slots.emplace_back(slot.host_address, slot.host_address + slot.size_bytes);
  }
  return slots;
}
inline void put_memory(const demo::Vm& vm, std::size_t slot, const std::vector<std::byte>& bytes) {
  std::memcpy(vm.memory().slots()[slot].host_address, bytes.data(), bytes.size());
}

// Where the first page lies in the slot that differs from what was there before.
inline std::uint64_t written_since(const demo::Vm& vm, std::size_t slot,
                                   const std::vector<std::byte>& before) {
  const std::byte* const now = vm.memory().slots()[slot].host_address;
  for (std::uint64_t at = 0; at < before.size(); at += demo::kGuestPageBytes) {
    if (std::memcmp(now + at, before.data() + at, demo::kGuestPageBytes) != 0) return at;
  }
  ADD_FAILURE() << "nothing was written";
  return 0;
}

inline void flip_each_block(const demo::VmSettings& settings) {
  const UniqueFd file(::open(settings.disk_path.c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(file.valid());
  for (std::uint64_t at = 100; at < settings.guest.disk_bytes; at += demo::kGuestPageBytes) {
    std::byte one{};
    ASSERT_EQ(::pread(file.get(), &one, 1, static_cast<off_t>(at)), 1);
    one ^= std::byte{1};
    ASSERT_EQ(::pwrite(file.get(), &one, 1, static_cast<off_t>(at)), 1);
  }
}

// The guest gives memory back, writes it again and finds what it should; the host got it.
inline void expect_balloon_works(demo::VmSettings settings, demo::MemoryKind kind) {
  settings.memory_kind = kind;
  settings.rates.write_pages = 50'000;
  settings.rates.give_backs = 500;
  const auto vm = booted(settings);
  wait_until(*vm, [](const demo::VmStatus& s) { return s.report.pages_given_back > 1'000; });
  const demo::VmStatus status = checked(*vm);
  EXPECT_EQ(status.run_state, demo::RunState::running) << status.failure;
  EXPECT_EQ(status.report.bad, 0U);
  EXPECT_GT(status.given_back_bytes, 0U);
}

}  // namespace pageferry::testing_support
