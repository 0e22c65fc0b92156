// How it works: a page counts as written as long as it is not write-protected, and also before it was ever protected. Registering
// protects nothing. So the first scan finds every page written, and is what arms them; nothing is walked at the start.
//
// A scan stops when its array of regions is full, and says where; what it has returned is armed, what lies behind is not. Only
// what was returned is armed: a write at any moment is either before the arming of its page, and in this answer, or after it, and
// in the next one. The caller reads pages when the answer is complete.
//
// While the guest is paused nobody writes, so that the last collection asks only: arming costs as much as finding.
//
// A scan that fails may have armed pages that it does not name. DirtySource then reports all pages once more.
#include "pager/async_write_protect_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <utility>

namespace pageferry {
namespace {

// 96 KiB. A full array costs one more call and no work twice.
constexpr std::size_t kRegionsPerScan = 4096;
constexpr std::uint64_t kPausedPieceBytes = std::uint64_t{64} << 20;
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
  for (std::size_t i = 0; i < block_addresses_.size(); ++i) {
    const RamBlock& block = layout().blocks()[i];
    for (std::uint64_t at = 0; at < block.length_bytes;) {
      PF_ASSIGN(at, scan(i, at, block.length_bytes, Arm::yes, dirty));
    }
  }
  return {};
}

Result<PageIndex> AsyncWriteProtectSource::fetch_paused(DirtyBitmap& dirty, PageIndex from) {
  const std::size_t index = layout().block_of(from);
  const RamBlock& block = layout().blocks()[index];
  const std::uint64_t begin = bytes_of_pages(raw(from) - raw(block.first_page));
  const std::uint64_t end = std::min(begin + kPausedPieceBytes, block.length_bytes);
  PF_ASSIGN(const std::uint64_t next, scan(index, begin, end, Arm::no, dirty));
  return block.first_page + pages_of_bytes(next);
}

// Of a block, from one offset to another. Says how far it came: at least one page.
Result<std::uint64_t> AsyncWriteProtectSource::scan(std::size_t index, std::uint64_t from,
                                                    std::uint64_t end, Arm arm,
                                                    DirtyBitmap& dirty) {
  const RamBlock& block = layout().blocks()[index];
  const std::uint64_t begin = block_addresses_[index];
  PageScan scan;
  scan.flags = kScanCheckAsync | (arm == Arm::yes ? kScanProtectMatching : 0);
  scan.start = begin + from;
  scan.end = begin + end;
  scan.regions = reinterpret_cast<std::uintptr_t>(regions_.data());
  scan.regions_max = regions_.size();
  scan.categories_all_of = kPageIsWritten;
  scan.categories_returned = kPageIsWritten;
  const int found = ::ioctl(pagemap_.get(), kPageScanCall, &scan);
  if (found < 0) {
    Unexpected reason =
        syscall_error("PAGEMAP_SCAN", fmt::format("{} at {:#x}", block.name, begin + from), errno);
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
  if (scan.walk_end <= begin + from) {
    return fail(Errc::io,
                fmt::format("PAGEMAP_SCAN of {} stands still at {:#x}", block.name, begin + from));
  }
  return scan.walk_end - begin;
}

Result<void> AsyncWriteProtectSource::end() {
  pagemap_.reset();
  Result<void> released = memory_->release();
  memory_.reset();
  return released;
}

}  // namespace pageferry
