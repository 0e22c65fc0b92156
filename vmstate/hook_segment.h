// HookSegment: the memory that a hook shares with its pagers: which pages were dirty at the last collection, and which were given back
// while pages were missing. The hook writes it; nobody else can, which the kernel sees to (F_SEAL_FUTURE_WRITE).
//
//   header (a page) | dirty bitmap | removed-pages bitmap            docs/hook-protocol.md has every byte
//
// A pager copies a bitmap and then looks at the copy. The dirty bitmap is as one COLLECT left it until the next one, which the same pager
// asks for; so it never changes under the one who reads it.
//
// Thread rule: put_dirty() one thread; add_removed() any; a view one thread.
#pragma once

#include <cstdint>
#include <memory>

#include "pager/dirty_bitmap.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "vmstate/shared_mapping.h"

namespace pageferry {

// Precondition: pages <= the pages of kMemoryBytesMax.
std::uint64_t hook_segment_bytes(std::uint64_t pages);

class HookSegment {
 public:
  // Errors: no_space, io, unsupported (no /proc).
  static Result<HookSegment> make(std::uint64_t pages);

  // For reading; to be passed on.
  int descriptor() const { return for_others_.get(); }
  std::uint64_t bytes() const { return hook_segment_bytes(pages_); }

  // What one collection found. Precondition: the pages of make() (checked).
  void put_dirty(const DirtyBitmap& dirty, std::uint64_t collection);
  // Precondition: inside (checked).
  void add_removed(PageRun run);

 private:
  HookSegment(std::uint64_t pages, UniqueFd for_others, SharedMapping mapping)
      : pages_(pages), for_others_(std::move(for_others)), mapping_(std::move(mapping)) {}
  std::uint64_t pages_;
  UniqueFd for_others_;
  SharedMapping mapping_;
};

class HookSegmentView {
 public:
  // Errors: invalid (not a segment for so many pages), version.
  static Result<HookSegmentView> open(const UniqueFd& memory, std::uint64_t pages);

  // Adds the bits to `dirty`. Errors: invalid (the segment holds another collection than the reply said, or bits behind the last page).
  // Precondition: as many pages (checked).
  Result<void> dirty_into(DirtyBitmap& dirty, std::uint64_t collection) const;
  void removed_into(DirtyBitmap& removed) const;

 private:
  HookSegmentView(std::uint64_t pages, SharedMapping mapping)
      : pages_(pages), mapping_(std::move(mapping)) {}
  void bitmap_into(DirtyBitmap& bitmap, std::size_t first_word) const;
  std::uint64_t pages_;
  SharedMapping mapping_;
};

}  // namespace pageferry
