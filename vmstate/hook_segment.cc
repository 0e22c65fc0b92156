// The header, in words of 64 bits: 0 magic, 1 version, 2 pages, 3 first word of the dirty bitmap, 4 of the removed pages, 5 number of the
// collection that the dirty bitmap holds. Bitmaps begin on a page.
#include "vmstate/hook_segment.h"

#include <fmt/format.h>

#include <vector>

#include "pager/page_words.h"
#include "vmstate/sealed_memory.h"

namespace pageferry {
namespace {

constexpr std::uint64_t kSegmentMagic = 0x544d474553464750;  // "PGFSEGMT"
constexpr std::uint64_t kSegmentVersion = 1;
constexpr std::size_t kWordsPerPage = kPageSizeBytes / sizeof(std::uint64_t);
enum HeaderWord : std::size_t {
  kSegmentMagicWord,
  kSegmentVersionWord,
  kPagesWord,
  kDirtyAtWord,
  kRemovedAtWord,
  kCollectionWord,
};

std::size_t bitmap_words(std::uint64_t pages) {
  return (words_for_pages(pages) + kWordsPerPage - 1) / kWordsPerPage * kWordsPerPage;
}
std::size_t dirty_at() {
  return kWordsPerPage;
}
std::size_t removed_at(std::uint64_t pages) {
  return dirty_at() + bitmap_words(pages);
}

}  // namespace

std::uint64_t hook_segment_bytes(std::uint64_t pages) {
  return (kWordsPerPage + 2 * bitmap_words(pages)) * sizeof(std::uint64_t);
}

Result<HookSegment> HookSegment::make(std::uint64_t pages) {
  const std::uint64_t bytes = hook_segment_bytes(pages);
  PF_ASSIGN(const UniqueFd memory, make_sealed_memory("pageferry-hook", bytes));
  PF_ASSIGN(SharedMapping mapping,
            SharedMapping::map(memory, bytes, SharedMapping::Access::read_write));
  mapping.store(kSegmentMagicWord, kSegmentMagic);
  mapping.store(kSegmentVersionWord, kSegmentVersion);
  mapping.store(kPagesWord, pages);
  mapping.store(kDirtyAtWord, dirty_at());
  mapping.store(kRemovedAtWord, removed_at(pages));
  PF_TRY(seal_for_other_writers(memory));
  PF_ASSIGN(UniqueFd for_others, reopen_read_only(memory));
  return HookSegment(pages, std::move(for_others), std::move(mapping));
}

void HookSegment::put_dirty(const DirtyBitmap& dirty, std::uint64_t collection) {
  PF_CHECK(dirty.pages() == pages_);
  const auto words = dirty.words();
  for (std::size_t i = 0; i < words.size(); ++i) mapping_.store(dirty_at() + i, words[i]);
  mapping_.store(kCollectionWord, collection);
}

void HookSegment::add_removed(PageRun run) {
  PF_CHECK(run.pages <= pages_ && raw(run.first) <= pages_ - run.pages);
  for_each_word(run, [this](std::size_t word, std::uint64_t mask) {
    mapping_.set_bits(removed_at(pages_) + word, mask);
  });
}

Result<HookSegmentView> HookSegmentView::open(const UniqueFd& memory, std::uint64_t pages) {
  const std::uint64_t bytes = hook_segment_bytes(pages);
  PF_TRY(check_sealed_memory("the hook's segment", memory, bytes, Sealed::size));
  PF_ASSIGN(SharedMapping mapping,
            SharedMapping::map(memory, bytes, SharedMapping::Access::read_only));
  if (mapping.load(kSegmentMagicWord) != kSegmentMagic) {
    return fail(Errc::invalid, fmt::format("the hook's segment begins with {:#x}",
                                           mapping.load(kSegmentMagicWord)));
  }
  if (mapping.load(kSegmentVersionWord) != kSegmentVersion) {
    return fail(Errc::version, fmt::format("the hook's segment has version {}, we read {}",
                                           mapping.load(kSegmentVersionWord), kSegmentVersion));
  }
  if (mapping.load(kPagesWord) != pages || mapping.load(kDirtyAtWord) != dirty_at() ||
      mapping.load(kRemovedAtWord) != removed_at(pages)) {
    return fail(Errc::invalid,
                fmt::format("the hook's segment is for {} pages, bitmaps at {} and {}; must be {}, "
                            "{} and {}",
                            mapping.load(kPagesWord), mapping.load(kDirtyAtWord),
                            mapping.load(kRemovedAtWord), pages, dirty_at(), removed_at(pages)));
  }
  return HookSegmentView(pages, std::move(mapping));
}

void HookSegmentView::bitmap_into(DirtyBitmap& bitmap, std::size_t first_word) const {
  PF_CHECK(bitmap.pages() == pages_);
  std::vector<std::uint64_t> words(words_for_pages(pages_));
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = mapping_.load(first_word + i);
  bitmap.set_where({PageIndex{0}, pages_}, words);
}

Result<void> HookSegmentView::dirty_into(DirtyBitmap& dirty, std::uint64_t collection) const {
  const std::uint64_t there = mapping_.load(kCollectionWord);
  if (there != collection) {
    return fail(Errc::invalid, fmt::format("the hook's segment holds collection {}, the hook said "
                                           "{}",
                                           there, collection));
  }
  bitmap_into(dirty, dirty_at());
  return {};
}

void HookSegmentView::removed_into(DirtyBitmap& removed) const {
  bitmap_into(removed, removed_at(pages_));
}

}  // namespace pageferry
