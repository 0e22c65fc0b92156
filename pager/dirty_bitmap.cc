// Walked a word (64 pages) at a time; empty words, which are most of them in a late pass, cost one comparison. Invariants:
//   I1  bits behind the last page are 0, so that a search needs no second limit
//   I2  pages_set_ is the number of set bits
#include "pager/dirty_bitmap.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "pager/page_words.h"
#include "transport/os/error.h"

namespace pageferry {
namespace {

std::uint64_t bits_in(std::uint64_t word) {
  return static_cast<std::uint64_t>(std::popcount(word));
}

}  // namespace

DirtyBitmap::DirtyBitmap(std::uint64_t pages) : pages_(pages), words_(words_for_pages(pages)) {}

void DirtyBitmap::check_inside(PageRun run) const {
  PF_CHECK(run.pages <= pages_ && raw(run.first) <= pages_ - run.pages);
}

void DirtyBitmap::set_bits(std::size_t word, std::uint64_t bits) {
  pages_set_ += bits_in(bits & ~words_[word]);
  words_[word] |= bits;
}

bool DirtyBitmap::is_set(PageIndex page) const {
  check_inside({page, 1});
  return (words_[raw(page) / kPagesPerWord] >> (raw(page) % kPagesPerWord) & 1U) != 0;
}

void DirtyBitmap::set(PageRun run) {
  check_inside(run);
  for_each_word(run, [this](std::size_t word, std::uint64_t mask) { set_bits(word, mask); });
}

void DirtyBitmap::clear(PageRun run) {
  check_inside(run);
  for_each_word(run, [this](std::size_t word, std::uint64_t mask) {
    pages_set_ -= bits_in(words_[word] & mask);
    words_[word] &= ~mask;
  });
}

// A word of theirs lands in one word of ours, or, where the run begins in the middle of a word, in two.
void DirtyBitmap::set_where(PageRun run, std::span<const std::uint64_t> words) {
  check_inside(run);
  PF_CHECK(words.size() >= words_for_pages(run.pages));
  const std::size_t first_word = raw(run.first) / kPagesPerWord;
  const std::uint64_t shift = raw(run.first) % kPagesPerWord;
  for (std::size_t i = 0; i < words_for_pages(run.pages); ++i) {
    const std::uint64_t left = run.pages - i * kPagesPerWord;
    const std::uint64_t bits = words[i] & low_bits(std::min(left, kPagesPerWord));
    if (bits == 0) continue;
    set_bits(first_word + i, bits << shift);
    const std::uint64_t carried = shift == 0 ? 0 : bits >> (kPagesPerWord - shift);
    if (carried != 0) set_bits(first_word + i + 1, carried);
  }
}

std::optional<PageRun> DirtyBitmap::next_run(PageIndex from, PageIndex end,
                                             std::uint64_t pages_max) const {
  check_inside({PageIndex{0}, raw(end)});
  PF_CHECK(raw(from) <= raw(end) && pages_max > 0);
  std::uint64_t first = raw(from);
  while (first < raw(end)) {
    const std::uint64_t set = words_[first / kPagesPerWord] >> (first % kPagesPerWord);
    if (set != 0) {
      first += static_cast<std::uint64_t>(std::countr_zero(set));
      break;
    }
    first = (first / kPagesPerWord + 1) * kPagesPerWord;
  }
  if (first >= raw(end)) return std::nullopt;
  const std::uint64_t limit = first + std::min(pages_max, raw(end) - first);
  std::uint64_t after = first;
  while (after < limit) {
    const std::uint64_t bit = after % kPagesPerWord;
    const std::uint64_t clear = ~words_[after / kPagesPerWord] >> bit;
    if (clear != 0) {
      after += static_cast<std::uint64_t>(std::countr_zero(clear));
      break;
    }
    after += kPagesPerWord - bit;
  }
  return PageRun{.first = PageIndex{first}, .pages = std::min(after, limit) - first};
}

DirtyBitmap DirtyBitmap::take() {
  DirtyBitmap taken(pages_);
  std::swap(*this, taken);
  return taken;
}

void DirtyBitmap::merge_back(const DirtyBitmap& other) {
  PF_CHECK(other.pages_ == pages_);
  set_where({PageIndex{0}, pages_}, other.words_);
}

void DirtyBitmap::remove(const DirtyBitmap& other) {
  PF_CHECK(other.pages_ == pages_);
  for (std::size_t word = 0; word < words_.size(); ++word) {
    pages_set_ -= bits_in(words_[word] & other.words_[word]);
    words_[word] &= ~other.words_[word];
  }
}

}  // namespace pageferry
