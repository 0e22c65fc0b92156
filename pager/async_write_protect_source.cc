// How it works: a page counts as written as long as it is not write-protected, and also before it was ever protected. Registering
// protects nothing. So the first scan finds every page written, and is what arms them; nothing is walked at the start.
//
// A scan stops when its array of regions is full, and says where; what it has returned is armed, what lies behind is not. Only
// what was returned is armed: a write at any moment is either before the arming of its page, and in this answer, or after it, and
// in the next one. The caller reads pages when the answer is complete.
//
// A scan that fails may have armed pages that it does not name. DirtySource then reports all pages once more.
#include "pager/async_write_protect_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <string_view>
#include <utility>

namespace pageferry {
namespace {

// 96 KiB. A full array costs one more call and no work twice.
constexpr std::size_t kRegionsPerScan = 4096;
constexpr std::string_view kPagemapPath = "/proc/self/pagemap";
constexpr std::uint64_t kAsyncFeatures = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                                         UFFD_FEATURE_WP_HUGETLBFS_SHMEM | kUserfaultWpUnpopulated |
                                         kUserfaultWpAsync;

}  // namespace

AsyncWriteProtectSource::AsyncWriteProtectSource(const MemoryLayout& layout,
                                                 std::vector<std::uint64_t> block_addresses)
    : DirtySource(layout), block_addresses_(std::move(block_addresses)) {
  PF_CHECK(block_addresses_.size() == layout.blocks().size());
}

Result<void> AsyncWriteProtectSource::begin() {
  UniqueFd pagemap(::open(kPagemapPath.data(), O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid()) {
    Unexpected reason = syscall_error("open", kPagemapPath);
    reason.value().code = Errc::unsupported;  // no /proc, or a process that may not be looked into
    return reason;
  }
  PF_ASSIGN(memory_, WriteProtectedMemory::make(layout(), block_addresses_, kAsyncFeatures,
                                                KernelFaults::answered_by_kernel));
  pagemap_ = std::move(pagemap);
  regions_.resize(kRegionsPerScan);
  return {};
}

Result<void> AsyncWriteProtectSource::fetch(DirtyBitmap& dirty) {
  for (std::size_t i = 0; i < block_addresses_.size(); ++i) PF_TRY(fetch_block(i, dirty));
  return {};
}

Result<void> AsyncWriteProtectSource::fetch_block(std::size_t index, DirtyBitmap& dirty) {
  const RamBlock& block = layout().blocks()[index];
  const std::uint64_t begin = block_addresses_[index];
  const std::uint64_t end = begin + block.length_bytes;
  for (std::uint64_t at = begin; at < end;) {
    PageScan scan;
    scan.flags = kScanProtectMatching | kScanCheckAsync;
    scan.start = at;
    scan.end = end;
    scan.regions = reinterpret_cast<std::uintptr_t>(regions_.data());
    scan.regions_max = regions_.size();
    scan.categories_all_of = kPageIsWritten;
    scan.categories_returned = kPageIsWritten;
    const int found = ::ioctl(pagemap_.get(), kPageScanCall, &scan);
    if (found < 0) {
      Unexpected reason =
          syscall_error("PAGEMAP_SCAN", fmt::format("{} at {:#x}", block.name, at), errno);
      if (reason.value().sys_errno == EPERM) {
        reason.value().code = Errc::vmm;
        reason.value().message += ": mapped anew since tracking began";
      }
      return reason;
    }
    for (int i = 0; i < found; ++i) {
      const PageRegion& region = regions_[static_cast<std::size_t>(i)];
      dirty.set({.first = block.first_page + pages_of_bytes(region.start - begin),
                 .pages = pages_of_bytes(region.end - region.start)});
    }
    if (scan.walk_end <= at) {
      return fail(Errc::io,
                  fmt::format("PAGEMAP_SCAN of {} stands still at {:#x}", block.name, at));
    }
    at = scan.walk_end;
  }
  return {};
}

Result<void> AsyncWriteProtectSource::end() {
  pagemap_.reset();
  Result<void> released = memory_->release();
  memory_.reset();
  return released;
}

}  // namespace pageferry
