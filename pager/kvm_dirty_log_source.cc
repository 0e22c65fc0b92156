// Manual protection splits what KVM_GET_DIRTY_LOG once did in one step: GET only reads the log, CLEAR takes the bits out that we
// have read, and protects those pages again. A write in between finds the page writable; it is before the arming, and the page is
// read after it. The lock of KVM's page tables is then held for one piece at a time (kPagesPerClear), and not for a whole slot.
//
// KVM_DIRTY_LOG_INITIALLY_SET, where KVM has it: a new log says that all is dirty and protects nothing, so that switching it on
// costs nothing; the first collection arms.
#include "pager/kvm_dirty_log_source.h"

#include <fmt/format.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "pager/page_words.h"

namespace pageferry {
namespace {

constexpr std::uint64_t kPagesPerClear = 65'536;  // a multiple of 64, as KVM wants it

Unexpected refused(const char* call, const KvmMemorySlot& slot) {
  Unexpected reason = syscall_error(call, fmt::format("slot {:#x}", slot.slot));
  reason.value().code = Errc::vmm;
  return reason;
}

}  // namespace

KvmDirtyLogSource::KvmDirtyLogSource(const MemoryLayout& layout, int vm_fd,
                                     std::vector<KvmMemorySlot> slots)
    : DirtySource(layout), vm_fd_(vm_fd), slots_(std::move(slots)) {}

Result<void> KvmDirtyLogSource::begin() {
  PF_TRY(check_slots_cover(layout(), slots_));
  const int modes = ::ioctl(vm_fd_, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
  if (modes <= 0 || (modes & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) == 0) {
    return fail(Errc::unsupported, "KVM has no manual dirty log protection (Linux 5.0)");
  }
  kvm_enable_cap capability{};
  capability.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
  capability.args[0] = static_cast<std::uint64_t>(modes) &
                       (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
  if (::ioctl(vm_fd_, KVM_ENABLE_CAP, &capability) != 0) {
    Unexpected reason = syscall_error("KVM_ENABLE_CAP", "manual dirty log protection");
    reason.value().code = Errc::vmm;
    return reason;
  }
  return switch_logs_on(vm_fd_, slots_);
}

Result<void> KvmDirtyLogSource::fetch(DirtyBitmap& dirty) {
  for (const KvmMemorySlot& slot : slots_) PF_TRY(fetch_slot(slot, dirty));
  return {};
}

Result<void> KvmDirtyLogSource::fetch_slot(const KvmMemorySlot& slot, DirtyBitmap& dirty) {
  words_.assign(words_for_pages(slot.pages.pages), 0);
  kvm_dirty_log log{};
  log.slot = slot.slot;
  log.dirty_bitmap = words_.data();
  if (::ioctl(vm_fd_, KVM_GET_DIRTY_LOG, &log) != 0) return refused("KVM_GET_DIRTY_LOG", slot);
  PF_TRY(clear_log(slot));
  dirty.set_where(slot.pages, words_);
  return {};
}

Result<void> KvmDirtyLogSource::clear_log(const KvmMemorySlot& slot) {
  for (std::uint64_t first = 0; first < slot.pages.pages; first += kPagesPerClear) {
    const std::uint64_t pages = std::min(slot.pages.pages - first, kPagesPerClear);
    const auto words = std::span(words_).subspan(first / kPagesPerWord, words_for_pages(pages));
    if (std::ranges::all_of(words, [](std::uint64_t word) { return word == 0; })) continue;
    kvm_clear_dirty_log clear{};
    clear.slot = slot.slot;
    clear.num_pages = static_cast<std::uint32_t>(pages);
    clear.first_page = first;
    clear.dirty_bitmap = words.data();
    while (::ioctl(vm_fd_, KVM_CLEAR_DIRTY_LOG, &clear) != 0) {
      if (errno != EINTR) return refused("KVM_CLEAR_DIRTY_LOG", slot);
    }
  }
  return {};
}

Result<void> KvmDirtyLogSource::end() {
  return switch_logs_off(vm_fd_, slots_);
}

}  // namespace pageferry
