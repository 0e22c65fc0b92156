// DirtyBitmap: which pages of a MemoryLayout have to be written (again). What a DirtySource reports goes in, what a pass over
// it could not write goes back in: taking bits out is destructive, because the source has armed those pages again and will not
// name them a second time.
//
//   source.collect_into(dirty)  -->  work = dirty.take()  -->  write work; a run is cleared when it is written
//                                          │ failed
//                                          └──────────────>  dirty.merge_back(work)
//
// One bit a page: 32 MiB for each TiB of guest. Knows no contents and no source.
//
// Thread rule: one thread at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "pager/page.h"

namespace pageferry {

class DirtyBitmap {
 public:
  // All clear.
  explicit DirtyBitmap(std::uint64_t pages);

  std::uint64_t pages() const { return pages_; }
  // How many are set; costs nothing.
  std::uint64_t count() const { return pages_set_; }
  bool empty() const { return pages_set_ == 0; }

  // Precondition for all below: the pages lie inside the bitmap (checked).
  bool is_set(PageIndex page) const;
  void set(PageRun run);
  void clear(PageRun run);
  // Sets what is set in a bitmap of somebody else's: bit i of the words (bit i % 64 of word i / 64) is page run.first + i.
  // Bits from run.pages on are ignored. Precondition: `words` holds run.pages bits (checked).
  void set_where(PageRun run, std::span<const std::uint64_t> words);

  // Bit i % 64 of word i / 64 is page i; bits behind the last page are 0. Valid until the bitmap changes.
  std::span<const std::uint64_t> words() const { return words_; }

  // The first set page from `from` on, with all that are set behind it without a gap, at most pages_max of them. nullopt: none.
  // Preconditions: raw(from) <= pages(); pages_max > 0.
  std::optional<PageRun> next_run(PageIndex from, std::uint64_t pages_max) const {
    return next_run(from, PageIndex{pages_}, pages_max);
  }
  // The same of the pages before `end`; looks at no others. Precondition: raw(from) <= raw(end) <= pages() as well.
  std::optional<PageRun> next_run(PageIndex from, PageIndex end, std::uint64_t pages_max) const;

  // The content, by which this one is empty afterwards. The number of pages stays.
  DirtyBitmap take();
  // Sets what is set in `other`. Precondition: both have the same number of pages (checked).
  void merge_back(const DirtyBitmap& other);
  // Clears what is set in `other`. The same precondition.
  void remove(const DirtyBitmap& other);

  friend bool operator==(const DirtyBitmap&, const DirtyBitmap&) = default;

 private:
  void check_inside(PageRun run) const;
  void set_bits(std::size_t word, std::uint64_t bits);

  std::uint64_t pages_;
  std::uint64_t pages_set_ = 0;
  std::vector<std::uint64_t> words_;  // bits behind the last page are 0
};

}  // namespace pageferry
