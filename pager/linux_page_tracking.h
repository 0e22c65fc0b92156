// What newer kernels have for page tracking and Debian 12's headers (6.1) do not: numbers and structures of the kernel's ABI, as
// documented in admin-guide/mm/userfaultfd, admin-guide/mm/pagemap and PAGEMAP_SCAN(2const). Whether the running kernel knows
// them is asked at run time.
//
// The names are ours, so that newer headers do not collide with them.
#pragma once

#include <linux/ioctl.h>

#include <cstdint>

namespace pageferry {

// userfaultfd: write protection marks pages that are not there yet (6.4).
inline constexpr std::uint64_t kUserfaultWpUnpopulated = std::uint64_t{1} << 13;
// userfaultfd: a write to a protected page is let through and remembered by the kernel, without a message (6.7).
inline constexpr std::uint64_t kUserfaultWpAsync = std::uint64_t{1} << 15;

// PAGEMAP_SCAN, on /proc/PID/pagemap (6.7).
struct PageRegion {
  std::uint64_t start = 0;  // addresses
  std::uint64_t end = 0;
  std::uint64_t categories = 0;
};
struct PageScan {
  std::uint64_t size = sizeof(PageScan);
  std::uint64_t flags = 0;
  std::uint64_t start = 0;
  std::uint64_t end = 0;
  std::uint64_t walk_end = 0;  // out: where the kernel stopped
  std::uint64_t regions = 0;   // address of an array of PageRegion
  std::uint64_t regions_max = 0;
  std::uint64_t pages_max = 0;  // 0: no limit
  std::uint64_t categories_inverted = 0;
  std::uint64_t categories_all_of = 0;
  std::uint64_t categories_any_of = 0;
  std::uint64_t categories_returned = 0;
};
static_assert(sizeof(PageRegion) == 24 && sizeof(PageScan) == 96);

inline constexpr unsigned long kPageScanCall = _IOWR('f', 16, PageScan);
inline constexpr std::uint64_t kScanProtectMatching =
    1;  // what is returned is protected again, in one step per page
inline constexpr std::uint64_t kScanCheckAsync =
    2;  // EPERM where memory is not registered for kUserfaultWpAsync
inline constexpr std::uint64_t kPageIsWritten = 2;  // category: not write-protected by userfaultfd
inline constexpr std::uint64_t kPageIsPresent = 8;  // category
inline constexpr std::uint64_t kPageIsSwapped =
    16;  // category; also what a marker on no page looks like

}  // namespace pageferry
