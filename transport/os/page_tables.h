// PageTables: which pages of another process's memory are there (/proc/PID/pagemap; kernel document admin-guide/mm/pagemap):
// 8 bytes for each 4 KiB, bit 63 present, bit 62 swapped out. A page of a file that nobody has touched through this process's
// mapping is not shown.
//
// Whoever may have a duplicate of the process's descriptors (process_descriptors.h) may read them.
//
// Thread rule: one thread at a time. Owns a descriptor, which pins the memory that it was opened for: a later process with the
// same pid is not taken for it.
#pragma once

#include <cstdint>
#include <span>

#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

class PageTables {
 public:
  // Errors: gone (no such process), unsupported (not allowed to look), io.
  static Result<PageTables> open(int pid);

  // The entries of the pages from `address` on. Errors: gone (the process has ended), io.
  Result<void> read(std::uint64_t address, std::span<std::uint64_t> entries) const;
  static bool is_present(std::uint64_t entry) { return (entry & kPresent) != 0; }
  // Or swapped out; or a marker, where write protection is armed or a page is poisoned.
  static bool is_there(std::uint64_t entry) { return (entry & kPresentOrSwapped) != 0; }
  // Write-protected by a userfaultfd: the page, or a marker where none is (Linux 5.13).
  static bool is_write_protected(std::uint64_t entry) { return (entry & kWriteProtected) != 0; }
  // The same for the one page at `address`.
  Result<bool> has(std::uint64_t address) const;

 private:
  static constexpr std::uint64_t kPresent = std::uint64_t{1} << 63;
  static constexpr std::uint64_t kPresentOrSwapped = std::uint64_t{3} << 62;
  static constexpr std::uint64_t kWriteProtected = std::uint64_t{1} << 57;
  explicit PageTables(UniqueFd pagemap) : pagemap_(std::move(pagemap)) {}

  UniqueFd pagemap_;
};

}  // namespace pageferry
