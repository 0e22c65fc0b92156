// The life of an entry, by its flags: 0, free --KVM--> DIRTY --us--> RESET --KVM_RESET_DIRTY_RINGS--> 0, and the page is armed
// again. KVM fills a ring in order and frees it in order, and says nowhere where it is. A new ring begins at 0; one that another
// source has emptied goes on where that one ended. So the oldest entry is looked for once: a DIRTY one behind one that is not.
// Of two neighbours the later is looked at first: KVM writes the earlier one first, so that one cannot appear in between.
//
// Pages count as collected only after KVM_RESET_DIRTY_RINGS: entries that are taken and not yet reset stand for pages that can be
// written without a new entry. The lock keeps a vCPU's thread in empty_rings() out of the middle of a collection.
#include "pager/kvm_dirty_ring_source.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <utility>

namespace pageferry {
namespace {

constexpr std::uint32_t kEntryDirty = 1;
constexpr std::uint32_t kEntryReset = 2;
constexpr std::uint64_t kRingPageOffset = KVM_DIRTY_LOG_PAGE_OFFSET;

Unexpected refused(const char* call, std::string_view subject) {
  Unexpected reason = syscall_error(call, subject);
  reason.value().code = Errc::vmm;
  return reason;
}

}  // namespace

Result<void> enable_dirty_rings(int vm_fd, std::uint64_t ring_bytes) {
  PF_CHECK(std::has_single_bit(ring_bytes) && ring_bytes >= kPageSizeBytes);
  std::uint32_t capability = KVM_CAP_DIRTY_LOG_RING_ACQ_REL;
  int bytes_max = ::ioctl(vm_fd, KVM_CHECK_EXTENSION, capability);
  if (bytes_max <= 0) {
    capability = KVM_CAP_DIRTY_LOG_RING;
    bytes_max = ::ioctl(vm_fd, KVM_CHECK_EXTENSION, capability);
  }
  if (bytes_max <= 0 || static_cast<std::uint64_t>(bytes_max) < ring_bytes) {
    return fail(Errc::unsupported, fmt::format("KVM's dirty rings have at most {} bytes, not {}",
                                               std::max(bytes_max, 0), ring_bytes));
  }
  kvm_enable_cap request{};
  request.cap = capability;
  request.args[0] = ring_bytes;
  if (::ioctl(vm_fd, KVM_ENABLE_CAP, &request) == 0) return {};
  return refused("KVM_ENABLE_CAP", "dirty rings (to be enabled before the first vCPU)");
}

// --- one ring ---

Result<KvmDirtyRingSource::Ring> KvmDirtyRingSource::Ring::map(int vcpu_fd, std::uint64_t bytes) {
  void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd,
                          static_cast<off_t>(bytes_of_pages(kRingPageOffset)));
  if (at == MAP_FAILED) return refused("mmap", "dirty ring of a vCPU");
  return Ring(std::span(static_cast<kvm_dirty_gfn*>(at), bytes / sizeof(kvm_dirty_gfn)));
}

KvmDirtyRingSource::Ring::Ring(Ring&& other) noexcept
    : entries_(std::exchange(other.entries_, {})), next_(other.next_) {}

KvmDirtyRingSource::Ring::~Ring() {
  if (!entries_.empty()) ::munmap(entries_.data(), entries_.size_bytes());
}

bool KvmDirtyRingSource::Ring::is_dirty(std::size_t index) const {
  const std::atomic_ref<std::uint32_t> flags(entries_[index].flags);
  return (flags.load(std::memory_order_acquire) & kEntryDirty) != 0;
}

std::optional<std::size_t> KvmDirtyRingSource::Ring::find_oldest() const {
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (is_dirty(i) && !is_dirty((i + entries_.size() - 1) % entries_.size())) return i;
  }
  return std::nullopt;
}

bool KvmDirtyRingSource::Ring::is_full() const {
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (!is_dirty(i)) return false;
  }
  return true;
}

// Once around at most. In a ring that is full no oldest entry can be seen; it does not matter any more where one begins.
template <typename Visit>
std::size_t KvmDirtyRingSource::Ring::take_all(Visit visit) {
  if (!next_) next_ = find_oldest();
  if (!next_ && !is_full()) return 0;
  std::size_t at = next_.value_or(0);
  std::size_t taken = 0;
  for (; taken < entries_.size() && is_dirty(at); ++taken) {
    visit(std::as_const(entries_[at]));
    std::atomic_ref(entries_[at].flags).store(kEntryReset, std::memory_order_release);
    at = (at + 1) % entries_.size();
  }
  if (next_) next_ = at;
  return taken;
}

// --- all of them ---

KvmDirtyRingSource::KvmDirtyRingSource(const MemoryLayout& layout, int vm_fd,
                                       std::vector<int> vcpu_fds, std::uint64_t ring_bytes,
                                       std::vector<KvmMemorySlot> slots)
    : DirtySource(layout),
      vm_fd_(vm_fd),
      vcpu_fds_(std::move(vcpu_fds)),
      ring_bytes_(ring_bytes),
      slots_(std::move(slots)),
      harvested_(layout.pages()) {
  std::ranges::sort(slots_, {}, &KvmMemorySlot::slot);
}

Result<void> KvmDirtyRingSource::begin() {
  PF_TRY(check_slots_cover(layout(), slots_));
  // Without rings the mapping below succeeds, and is a bus error to look at. This call knows.
  if (::ioctl(vm_fd_, KVM_RESET_DIRTY_RINGS, 0) < 0) {
    return refused("KVM_RESET_DIRTY_RINGS", "a VM that was to have dirty rings");
  }
  std::vector<Ring> rings;
  for (const int vcpu_fd : vcpu_fds_) {
    PF_ASSIGN(Ring ring, Ring::map(vcpu_fd, ring_bytes_));
    rings.push_back(std::move(ring));
  }
  const std::lock_guard lock(rings_lock_);
  PF_TRY(switch_logs_on(vm_fd_, slots_));
  rings_ = std::move(rings);
  return {};
}

void KvmDirtyRingSource::note(const kvm_dirty_gfn& entry) {
  const auto slot = std::ranges::lower_bound(slots_, entry.slot, {}, &KvmMemorySlot::slot);
  if (slot == slots_.end() || slot->slot != entry.slot) return;  // not of the layout
  if (entry.offset >= slot->pages.pages) return;
  harvested_.mark({.first = slot->pages.first + entry.offset, .pages = 1});
}

// Precondition: rings_lock_ is held.
Result<void> KvmDirtyRingSource::harvest() {
  if (broken_) return tl::make_unexpected(*broken_);
  std::size_t taken_in_all = 0;
  for (std::size_t i = 0; i < rings_.size(); ++i) {
    const std::size_t taken = rings_[i].take_all([this](const kvm_dirty_gfn& each) { note(each); });
    taken_in_all += taken;
    if (taken < rings_[i].size()) continue;
    broken_ = fail(Errc::vmm, fmt::format("the dirty ring of vCPU {} is full to the last of {} "
                                          "entries: KVM may have lost some",
                                          i, taken))
                  .value();
  }
  const int reset = ::ioctl(vm_fd_, KVM_RESET_DIRTY_RINGS, 0);
  if (reset < 0) return refused("KVM_RESET_DIRTY_RINGS", "all vCPUs");
  if (!broken_ && static_cast<std::size_t>(reset) < taken_in_all) {
    broken_ = fail(Errc::vmm, fmt::format("KVM took {} of {} entries of its dirty rings back",
                                          reset, taken_in_all))
                  .value();
  }
  if (broken_) return tl::make_unexpected(*broken_);
  return {};
}

Result<void> KvmDirtyRingSource::empty_rings() {
  const std::lock_guard lock(rings_lock_);
  return harvest();
}

Result<void> KvmDirtyRingSource::fetch(DirtyBitmap& dirty) {
  const std::lock_guard lock(rings_lock_);
  PF_TRY(harvest());
  harvested_.take_into(dirty);
  return {};
}

// The rings are left empty for the next source, as far as the guest stands still; it finds what came since and reports too much.
Result<void> KvmDirtyRingSource::end() {
  const std::lock_guard lock(rings_lock_);
  Result<void> emptied = harvest();
  Result<void> off = switch_logs_off(vm_fd_, slots_);
  rings_.clear();
  broken_.reset();
  return emptied ? off : emptied;
}

}  // namespace pageferry
