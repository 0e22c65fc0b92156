// The walk over a bitmap of pages in words of 64: which bits of which words a run of pages is.
//
// Thread rule: pure functions.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "pager/page.h"

namespace pageferry {

inline constexpr std::uint64_t kPagesPerWord = 64;

constexpr std::size_t words_for_pages(std::uint64_t pages) {
  return static_cast<std::size_t>((pages + kPagesPerWord - 1) / kPagesPerWord);
}

// The lowest `count` bits. Precondition: count <= 64.
constexpr std::uint64_t low_bits(std::uint64_t count) {
  return count == kPagesPerWord ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
}

// Calls visit(index of the word, mask of the run's bits in it) for each word that the run touches, in ascending order.
template <typename Visit>
void for_each_word(PageRun run, Visit visit) {
  std::uint64_t page = raw(run.first);
  std::uint64_t left = run.pages;
  while (left > 0) {
    const std::uint64_t bit = page % kPagesPerWord;
    const std::uint64_t count = std::min(left, kPagesPerWord - bit);
    visit(static_cast<std::size_t>(page / kPagesPerWord), low_bits(count) << bit);
    page += count;
    left -= count;
  }
}

}  // namespace pageferry
