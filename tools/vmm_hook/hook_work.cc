// The dirty source is chosen when the hook starts, so that any thread may report to it from then on; it is switched on and off later.
#include "tools/vmm_hook/hook_work.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "pager/async_write_protect_source.h"
#include "pager/kvm_dirty_log_source.h"
#include "pager/sync_write_protect_source.h"
#include "pager/write_protect_self_test.h"
#include "vmstate/sealed_memory.h"

namespace pageferry {
namespace {

std::vector<KvmMemorySlot> kvm_slots(const HookConfig& config) {
  std::vector<KvmMemorySlot> slots;
  for (std::size_t i = 0; i < config.slots.size(); ++i) {
    const RamBlock& block = config.layout.blocks()[i];
    slots.push_back({.slot = static_cast<std::uint32_t>(config.memory[i].kvm_slot),
                     .flags = 0,
                     .guest_physical = config.slots[i].guest_address,
                     .userspace = config.slots[i].host_address,
                     .pages = {.first = block.first_page, .pages = block.pages()}});
  }
  return slots;
}

std::unique_ptr<DirtySource> make_dirty_source(const HookConfig& config, VmmCallbacks& callbacks) {
  const MemoryLayout& layout = config.layout;
  switch (config.dirty_source) {
    case PAGEFERRY_DIRTY_VMM:
      return std::make_unique<VmmDirtySource>(layout, callbacks);
    case PAGEFERRY_DIRTY_KVM_LOG:
      return std::make_unique<KvmDirtyLogSource>(layout, config.kvm_vm_fd, kvm_slots(config));
    case PAGEFERRY_DIRTY_WP_ASYNC:
      return std::make_unique<AsyncWriteProtectSource>(layout, config.host_addresses());
    case PAGEFERRY_DIRTY_WP_SYNC:
      return std::make_unique<SyncWriteProtectSource>(layout, config.host_addresses());
    case PAGEFERRY_DIRTY_AUTOMATIC:
      break;
  }
  if (config.callbacks.fetch_dirty != nullptr) {
    return std::make_unique<VmmDirtySource>(layout, callbacks);
  }
  return choose_write_protect_source(layout, config.host_addresses()).source;
}

// How the writes of a guest that is being restored can be known from its first page on; by page tables, or not.
IncomingMemory::Tracking tracking_for(const HookConfig& config) {
  using Kind = RestoredWriteSource::Kind;
  const bool by_page_tables =
      config.dirty_source == PAGEFERRY_DIRTY_WP_ASYNC ||
      config.dirty_source == PAGEFERRY_DIRTY_WP_SYNC ||
      (config.dirty_source == PAGEFERRY_DIRTY_AUTOMATIC && config.callbacks.fetch_dirty == nullptr);
  const bool small_pages = std::ranges::all_of(
      config.slots, [](const auto& slot) { return slot.backing_page_bytes == kPageSizeBytes; });
  if (!by_page_tables || !small_pages) return std::nullopt;
  if (config.dirty_source == PAGEFERRY_DIRTY_WP_SYNC) return Kind::synchronous;
  return async_write_protect_self_test() ? Kind::asynchronous : Kind::synchronous;
}

WorkOutcome only(Result<void> result) {
  WorkOutcome outcome;
  outcome.result = std::move(result);
  return outcome;
}

}  // namespace

HookWork::HookWork(HookConfig config, HookSegment segment)
    : config_(std::move(config)),
      callbacks_(config_.callbacks, config_.opaque),
      segment_(std::move(segment)),
      by_guest_address_(config_.slots.size()) {
  std::iota(by_guest_address_.begin(), by_guest_address_.end(), std::size_t{0});
  std::ranges::sort(by_guest_address_, {},
                    [this](std::size_t slot) { return config_.slots[slot].guest_address; });
}

Result<std::unique_ptr<HookWork>> HookWork::make(HookConfig config) {
  PF_ASSIGN(HookSegment segment, HookSegment::make(config.layout.pages()));
  std::unique_ptr<HookWork> work(new HookWork(std::move(config), std::move(segment)));
  if (work->config_.start == HookStart::incoming) {
    PF_ASSIGN(work->incoming_, IncomingMemory::prepare(work->config_, tracking_for(work->config_)));
  }
  PF_ASSIGN(work->writes_,
            GuestWrites::make(work->config_, make_dirty_source(work->config_, work->callbacks_),
                              work->incoming_.get()));
  return work;
}

hook_protocol::PagePlacing HookWork::placing() const {
  const bool is_tracked = incoming_ != nullptr && incoming_->tracking().has_value();
  return is_tracked ? hook_protocol::PagePlacing::write_protected
                    : hook_protocol::PagePlacing::plain;
}

WorkOutcome HookWork::track(const std::string& since_attempt) {
  return only(
      writes_->start(since_attempt.empty() ? GuestWrites::Since::now : GuestWrites::Since::image));
}

WorkOutcome HookWork::collect() {
  WorkOutcome outcome;
  DirtyBitmap dirty(config_.layout.pages());
  outcome.result =
      writes_->collect_into(dirty, paused_ ? GuestWrites::Guest::paused : GuestWrites::Guest::runs);
  if (!outcome.result) return outcome;
  segment_.put_dirty(dirty, ++collections_);
  outcome.collected = {.collection = collections_, .pages = dirty.count()};
  return outcome;
}

WorkOutcome HookWork::untrack() {
  return only(writes_->stop());
}

WorkOutcome HookWork::pause() {
  WorkOutcome outcome = only(callbacks_.pause());
  paused_ = outcome.result.has_value();
  return outcome;
}

WorkOutcome HookWork::resume() {
  paused_ = false;
  return only(callbacks_.resume());
}

WorkOutcome HookWork::save_state() {
  auto state = callbacks_.save_state();
  if (!state) return only(tl::make_unexpected(std::move(state).error()));
  auto memory = make_sealed_memory("pageferry-state", *state);
  if (!memory) return only(tl::make_unexpected(std::move(memory).error()));
  WorkOutcome outcome;
  outcome.descriptor = std::move(*memory);
  outcome.state_bytes = state->size();
  return outcome;
}

WorkOutcome HookWork::load_state(const UniqueFd& memory, std::uint64_t bytes) {
  auto state = read_sealed_memory(memory, bytes);
  if (!state) return only(tl::make_unexpected(std::move(state).error()));
  return only(callbacks_.load_state(*state));
}

WorkOutcome HookWork::resident() {
  auto finished = incoming_->finish();
  if (finished) writes_->became_resident();
  return only(std::move(finished));
}

WorkOutcome HookWork::tell_moved_away() {
  callbacks_.moved_away();
  return {};
}

WorkOutcome HookWork::tell_resident() {
  callbacks_.resident();
  return {};
}

// Slots next to each other are one range to whoever writes to the guest.
Result<std::vector<HookWork::Part>> HookWork::parts_of(std::uint64_t guest_address,
                                                       std::uint64_t bytes) const {
  const auto outside = [&] {
    return fail(Errc::invalid, fmt::format("{} bytes at {:#x} are not inside the memory slots",
                                           bytes, guest_address));
  };
  if (bytes == 0) return outside();
  const auto slot_at = [this](std::size_t slot) { return config_.slots[slot].guest_address; };
  auto next = std::ranges::upper_bound(by_guest_address_, guest_address, {}, slot_at);
  if (next == by_guest_address_.begin()) return outside();
  --next;
  std::vector<Part> parts;
  for (std::uint64_t done = 0; done < bytes; ++next) {
    if (next == by_guest_address_.end()) return outside();
    const auto& slot = config_.slots[*next];
    const std::uint64_t offset = guest_address + done - slot.guest_address;
    if (guest_address + done < slot.guest_address || offset >= slot.size_bytes) return outside();
    const std::uint64_t inside = std::min(bytes - done, slot.size_bytes - offset);
    parts.push_back({.slot = *next, .offset_bytes = offset, .bytes = inside});
    done += inside;
  }
  return parts;
}

PageRun HookWork::pages_of(const Part& part) const {
  const std::uint64_t first = pages_of_bytes(part.offset_bytes);
  const std::uint64_t last = pages_of_bytes(part.offset_bytes + part.bytes - 1);
  return {.first = config_.layout.blocks()[part.slot].first_page + first,
          .pages = last - first + 1};
}

Result<void> HookWork::mark_dirty(std::uint64_t guest_address, std::uint64_t bytes) {
  PF_ASSIGN(const auto parts, parts_of(guest_address, bytes));
  for (const Part& part : parts) writes_->mark(pages_of(part));
  return {};
}

// Removed before zeroed: a pager that looks meanwhile does not bring the page, and one that does not look finds it there.
Result<void> HookWork::discard(std::uint64_t guest_address, std::uint64_t bytes) {
  PF_ASSIGN(const auto parts, parts_of(guest_address, bytes));
  for (const Part& part : parts) {
    const std::uint64_t unit = config_.slots[part.slot].backing_page_bytes;
    if (part.offset_bytes % unit == 0 && part.bytes % unit == 0) continue;
    return fail(Errc::invalid, fmt::format("{} bytes at {:#x} are no whole pages of {}", bytes,
                                           guest_address, unit));
  }
  Result<void> result;
  for (const Part& part : parts) {
    if (incoming_ != nullptr && incoming_->are_missing()) {
      segment_.add_removed(pages_of(part));
      auto zeroed = incoming_->make_zero(part.slot, part.offset_bytes, part.bytes);
      if (!zeroed) result = std::move(zeroed);
    }
    writes_->discard(pages_of(part));
  }
  return result;
}

}  // namespace pageferry
