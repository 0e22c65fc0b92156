// FakeHookClient: a VMM with a hook whose guest memory is a memfd of the test. It tracks what the test says was written, and keeps the
// rules of who may run: a closed connection resumes before a commit and never after it.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "vmstate/hook_client.h"

namespace pageferry::fakes {

class FakeHookClient final : public HookClient {
 public:
  explicit FakeHookClient(std::uint64_t pages) : memory_(::memfd_create("guest", MFD_CLOEXEC)) {
    PF_CHECK(memory_.valid());
    const std::uint64_t bytes = bytes_of_pages(pages);
    PF_CHECK(::ftruncate(memory_.get(), static_cast<off_t>(bytes)) == 0);
    auto layout = MemoryLayout::make({{.name = "ram", .length_bytes = bytes}});
    PF_CHECK(layout.has_value());
    vm_.name = "fake";
    vm_.machine = "fake machine";
    vm_.layout = *layout;
    vm_.pid = ::getpid();
    HookSlot slot;
    slot.memory = UniqueFd(::dup(memory_.get()));
    vm_.slots.push_back(std::move(slot));
  }

  // The guest writes.
  void write_page(std::uint64_t page, std::byte content) {
    const std::vector<std::byte> bytes(kPageSizeBytes, content);
    const auto at = static_cast<off_t>(bytes_of_pages(page));
    PF_CHECK(::pwrite(memory_.get(), bytes.data(), bytes.size(), at) ==
             static_cast<ssize_t>(bytes.size()));
    const std::lock_guard lock(mutex_);
    written_.push_back(page);
  }

  const HookVm& vm() const override { return vm_; }
  int connection_fd() const override { return -1; }
  Result<void> refresh(Deadline) override {
    if (on_refresh) on_refresh(vm_);
    return {};
  }
  Result<void> share_progress(const HookProgressWriter&, Deadline) override { return {}; }
  Result<HookProgressReader> progress(Deadline) override { return fail(Errc::not_found, "none"); }
  void removed_into(DirtyBitmap&) const override {}

  Result<void> start_tracking(Deadline, const std::string& since_attempt) override {
    if (!since_attempt.empty() && refuses_base) return fail(Errc::not_found, "not known");
    tracked = true;
    tracked_since = since_attempt;
    everything_ = since_attempt.empty();
    return {};
  }
  // Its memory is that attempt's image but for what was written.
  void restored_from(const std::string& attempt) { vm_.tracked_since_attempt = attempt; }
  Result<void> collect_into(DirtyBitmap& dirty, Deadline) override {
    if (on_collect) on_collect();
    const std::lock_guard lock(mutex_);
    if (std::exchange(everything_, false)) dirty.set({PageIndex{0}, vm_.layout.pages()});
    for (const std::uint64_t page : std::exchange(written_, {})) dirty.set({PageIndex{page}, 1});
    return {};
  }
  Result<void> stop_tracking(Deadline) override {
    tracked = false;
    return {};
  }
  Result<void> pause(Deadline, Milliseconds blackout_limit) override {
    if (given_up) return fail(Errc::canceled, "given up");
    vm_.state = HookState::paused;
    asked_limit = blackout_limit;
    return {};
  }
  Result<std::vector<std::byte>> save_state(Deadline) override {
    return std::vector<std::byte>(7, std::byte{7});
  }
  Result<void> commit(std::uint64_t epoch, Deadline) override {
    if (commit_error) return tl::make_unexpected(*commit_error);
    if (given_up) return fail(Errc::canceled, "given up");
    vm_.state = HookState::committed;
    vm_.epoch = epoch;
    return {};
  }
  Result<void> resume(std::uint64_t epoch, Deadline) override {
    vm_.state = HookState::running;
    vm_.epoch = epoch;
    return {};
  }
  Result<void> end(Deadline) override { return {}; }
  bool give_up() override {
    if (vm_.state == HookState::committed) return false;
    given_up = true;
    vm_.state = HookState::running;
    return true;
  }
  Result<UniqueFd> take_userfault(Deadline) override { return fail(Errc::vmm, "not incoming"); }
  Result<void> load_state(std::span<const std::byte>, const std::string&, Deadline) override {
    return fail(Errc::vmm, "not incoming");
  }
  Result<void> resident(Deadline) override { return fail(Errc::vmm, "not incoming"); }

  std::atomic<bool> given_up{false};
  bool tracked = false;
  std::string tracked_since;  // as it was asked for
  bool refuses_base = false;
  std::function<void(HookVm&)> on_refresh;
  Milliseconds asked_limit{0};
  std::optional<Error> commit_error;
  std::function<void()> on_collect;  // before each collection, on the collecting thread

 private:
  UniqueFd memory_;
  HookVm vm_;
  std::mutex mutex_;
  std::vector<std::uint64_t> written_;  // under mutex_
  bool everything_ = false;             // under mutex_
};

}  // namespace pageferry::fakes
