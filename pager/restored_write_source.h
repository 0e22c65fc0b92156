// RestoredWriteSource: a DirtySource over the userfaultfd of a restore, so that the writes of a restored guest are known from its first
// page on. One mapping has one userfaultfd; this one is registered for missing pages and for write protection at once, and whoever
// places a page places it write-protected (UserfaultOutlet, Placing):
//
//   missing  --placed with UFFDIO_COPY_MODE_WP-->  there, protected  --written-->  there, unprotected: in the next collection
//            --placed without------------------->  there, unprotected (zeros of anonymous memory, what the VMM gave back): the same
//
// Started with PagesAtStart::not_written before the first page is placed, its collections together name every page that differs from what
// was placed. The page tables are the record: nothing is lost when whoever places pages dies.
//
//   asynchronous   the kernel answers the first write to a protected page (WP_ASYNC), PAGEMAP_SCAN finds and arms it in one step
//   synchronous    whoever reads the userfaultfd takes the protection off: the pager while pages are missing (UserfaultOutlet), then
//                  HoleService. A write waits for that, as a touch of a missing page waits for the page
//
// A page that is missing is never armed where that would leave a marker that stands in its way (anonymous memory, where a marker makes
// UFFDIO_ZEROPAGE fail and cannot be told from a page that was swapped out). In files a marker does no harm, and a page may be in the file
// without being in the page tables: there a missing page may be named, and whoever asks leaves it out.
//
// Thread rule and lifetime: dirty_source.h; all_are_there() by the same thread. The descriptor stays open and registered until it is
// stopped.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "pager/dirty_source.h"
#include "pager/linux_page_tracking.h"
#include "transport/os/fd.h"
#include "transport/os/page_tables.h"

namespace pageferry {

class RestoredWriteSource final : public DirtySource {
 public:
  enum class Kind : std::uint8_t { asynchronous, synchronous };
  // What the userfaultfd must have been opened with, besides what missing pages need.
  static std::uint64_t features(Kind kind);

  enum class Memory : std::uint8_t { anonymous, file };
  // Of each block of the layout, in this process.
  struct Place {
    std::uint64_t address = 0;
    Memory memory = Memory::anonymous;
  };
  RestoredWriteSource(const MemoryLayout& layout, std::vector<Place> places, int userfault,
                      Kind kind);
  ~RestoredWriteSource() override { static_cast<void>(stop()); }

  Kind kind() const { return kind_; }
  // No page is missing any more: holes that are found from now on are the guest's own.
  void all_are_there() { all_there_ = true; }
  // Every page counts as written, and nobody is slowed down until the next collection. Errors: vmm.
  Result<void> unprotect_all();

 private:
  Result<void> begin() override;
  Result<void> fetch(DirtyBitmap& dirty) override;
  Result<void> end() override;
  Result<void> scan_block(std::size_t index, DirtyBitmap& dirty);
  Result<void> read_block(std::size_t index, DirtyBitmap& dirty);
  bool is_written(std::uint64_t entry, Memory memory) const;
  enum class Protection : std::uint8_t { off, on };
  Result<void> set_protection(std::uint64_t address, std::uint64_t bytes, Protection protection);

  const std::vector<Place> places_;
  const int userfault_;
  const Kind kind_;
  bool all_there_ = false;
  UniqueFd pagemap_;                    // asynchronous, while started
  std::optional<PageTables> tables_;    // synchronous, the same
  std::vector<PageRegion> regions_;     // the answer of one scan
  std::vector<std::uint64_t> entries_;  // of one piece
};

}  // namespace pageferry
