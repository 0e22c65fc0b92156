// HookVmm: a VMM of the test process that uses the hook as a third party would: through its C interface only. Its guest is memory and a
// flag that says whether it runs; its device state is a text. What was called is in a list.
//
// Thread rule: one thread, the test's; callbacks come on the hook's.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "fakes/scratch_directory.h"
#include "fakes/userfault_memory.h"
#include "tools/vmm_hook/pageferry_hook.h"
#include "vmstate/hook_client.h"

namespace pageferry::testing_support {

class HookVmm {
 public:
  static constexpr std::uint64_t kRamPages = 96;
  static constexpr std::uint64_t kBiosPages = 32;
  static constexpr std::uint64_t kPages = kRamPages + kBiosPages;
  static constexpr std::uint64_t kBiosAddress = std::uint64_t{3} << 30;

  explicit HookVmm(Backing backing = Backing::memfd)
      : ram_(bytes_of_pages(kRamPages), backing), bios_(bytes_of_pages(kBiosPages), backing) {
    const auto file = [backing](const UserfaultMemory& memory) {
      return backing == Backing::memfd ? memory.file() : -1;
    };
    slots_[0] = {.name = "ram",
                 .guest_address = 0,
                 .size_bytes = ram_.bytes(),
                 .host_address = ram_.data(),
                 .memory_fd = file(ram_),
                 .kvm_slot = -1,
                 .memory_fd_offset = 0,
                 .backing_page_bytes = kPageSizeBytes};
    slots_[1] = slots_[0];
    slots_[1].name = "bios";
    slots_[1].guest_address = kBiosAddress;
    slots_[1].size_bytes = bios_.bytes();
    slots_[1].host_address = bios_.data();
    slots_[1].memory_fd = file(bios_);
    callbacks_.size_bytes = sizeof callbacks_;
    callbacks_.pause = [](void* self) { return of(self).called("pause", Runs::no); };
    callbacks_.resume = [](void* self) { return of(self).called("resume", Runs::yes); };
    callbacks_.save_state = [](void* self, pageferry_state_writer* writer) {
      const std::string& state = of(self).device_state;
      const int written = pageferry_state_write(writer, state.data(), state.size());
      const int returned = of(self).called("save_state", Runs::as_before);
      return written != 0 ? written : returned;
    };
    callbacks_.load_state = [](void* self, pageferry_state_reader* reader) {
      std::string state(pageferry_state_remaining(reader), '\0');
      const int taken = pageferry_state_read(reader, state.data(), state.size());
      of(self).device_state = state;
      const int returned = of(self).called("load_state", Runs::as_before);
      return taken != 0 ? taken : returned;
    };
    callbacks_.moved_away = [](void* self) { of(self).called("moved_away", Runs::as_before); };
    callbacks_.resident = [](void* self) { of(self).called("resident", Runs::as_before); };
    config_.size_bytes = sizeof config_;
    config_.abi_version = PAGEFERRY_HOOK_ABI_VERSION;
    config_.socket_path = path_.c_str();
    config_.vm_name = "demo";
    config_.machine = "test VMM 1";
    config_.slots = slots_.data();
    config_.slot_count = slots_.size();
    config_.callbacks = &callbacks_;
    config_.opaque = this;
    config_.kvm_vm_fd = -1;
  }
  ~HookVmm() { stop(); }
  HookVmm(const HookVmm&) = delete;
  HookVmm& operator=(const HookVmm&) = delete;

  // To be changed before start().
  pageferry_hook_config& config() { return config_; }
  pageferry_hook_callbacks& callbacks() { return callbacks_; }
  pageferry_memory_slot& slot(std::size_t index) { return slots_[index]; }
  std::string device_state = "the devices";

  int start() {
    runs_ = config_.incoming == 0;
    return pageferry_hook_start(&config_, &hook_, error_.data(), error_.size());
  }
  void start_well() { ASSERT_EQ(start(), 0) << error(); }
  int stop() {
    const int stopped = hook_ == nullptr ? 0 : pageferry_hook_stop(hook_);
    if (stopped != -EBUSY && stopped != -EDEADLK) hook_ = nullptr;
    return stopped;
  }
  // The process ends as it would with a guest that waits for pages: without stopping the hook.
  void forget() {
    // Something must still point to it: a leak checker takes it for lost otherwise.
    static auto& left_running = *new std::vector<pageferry_hook*>;
    left_running.push_back(hook_);
    hook_ = nullptr;
  }
  std::string error() const { return error_.data(); }
  pageferry_hook* hook() const { return hook_; }
  pageferry_hook_state state() const { return pageferry_hook_get_state(hook_); }
  const std::string& path() const { return path_; }

  std::byte* page(std::uint64_t index) const {
    return index < kRamPages ? ram_.page(index) : bios_.page(index - kRamPages);
  }
  void write(std::uint64_t index, std::byte value) const {
    *static_cast<volatile std::byte*>(page(index)) = value;
  }

  bool runs() const { return runs_.load(); }
  std::vector<std::string> calls() {
    const std::lock_guard lock(mutex_);
    return calls_;
  }
  // Waits until `name` was called `times` times.
  bool was_called(const std::string& name, std::size_t times = 1) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] {
      return static_cast<std::size_t>(std::count(calls_.begin(), calls_.end(), name)) >= times;
    });
  }
  // What a callback does and returns, once; then as always. For the guest's flag, 0 counts as done.
  void next(const std::string& name, std::function<int()> act) {
    const std::lock_guard lock(mutex_);
    acts_.emplace_back(name, std::move(act));
  }

  // A client that is right.
  std::unique_ptr<HookClient> connect(HookClient::Role role) {
    auto client = HookClient::connect(path_, role, soon());
    EXPECT_TRUE(client) << client.error().message;
    return client ? std::move(*client) : nullptr;
  }
  Deadline soon() const { return Deadline::after(clock_, Seconds(20)); }
  Deadline at_once() const { return Deadline::after(clock_, Nanoseconds(0)); }

 private:
  enum class Runs : std::uint8_t { no, yes, as_before };
  static HookVmm& of(void* self) { return *static_cast<HookVmm*>(self); }
  int called(const std::string& name, Runs runs) {
    std::function<int()> act;
    {
      const std::lock_guard lock(mutex_);
      const auto found = std::find_if(acts_.begin(), acts_.end(),
                                      [&](const auto& entry) { return entry.first == name; });
      if (found != acts_.end()) {
        act = std::move(found->second);
        acts_.erase(found);
      }
    }
    const int returned = act ? act() : 0;
    if (returned == 0 && runs != Runs::as_before) runs_ = runs == Runs::yes;
    const std::lock_guard lock(mutex_);
    calls_.push_back(name);
    changed_.notify_all();
    return returned;
  }

  MonotonicClock clock_;
  ScratchDirectory directory_;
  std::string path_ = directory_.file("hook.sock");
  UserfaultMemory ram_;
  UserfaultMemory bios_;
  std::array<pageferry_memory_slot, 2> slots_{};
  pageferry_hook_callbacks callbacks_{};
  pageferry_hook_config config_{};
  std::array<char, 512> error_{};
  pageferry_hook* hook_ = nullptr;
  std::atomic<bool> runs_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> calls_;                                 // guarded by mutex_
  std::deque<std::pair<std::string, std::function<int()>>> acts_;  // guarded by mutex_
};

}  // namespace pageferry::testing_support
