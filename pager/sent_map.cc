// Two bitmaps, walked a word (64 pages) at a time. Invariants:
//   I1  a page is taken at most once while it is not given back: take() aborts on a page that is
//   already taken I2  sent is a subset of taken
#include "pager/sent_map.h"

#include <algorithm>
#include <bit>

#include "pager/page_words.h"
#include "transport/os/error.h"

namespace pageferry {

SentMap::SentMap(std::uint64_t pages)
    : pages_(pages), taken_(words_for_pages(pages)), sent_(words_for_pages(pages)) {}

void SentMap::check_inside(PageRun run) const {
  PF_CHECK(run.pages <= pages_ && raw(run.first) <= pages_ - run.pages);
}

PageState SentMap::state(PageIndex page) const {
  check_inside({page, 1});
  const std::size_t word = raw(page) / kPagesPerWord;
  const std::uint64_t mask = std::uint64_t{1} << (raw(page) % kPagesPerWord);
  if ((sent_[word] & mask) != 0) return PageState::sent;
  return (taken_[word] & mask) != 0 ? PageState::in_flight : PageState::absent;
}

void SentMap::take(PageRun run) {
  check_inside(run);
  for_each_word(run, [this](std::size_t word, std::uint64_t mask) {
    PF_CHECK((taken_[word] & mask) == 0);
    taken_[word] |= mask;
  });
  pages_taken_ += run.pages;
}

void SentMap::give_back(PageRun run) {
  check_inside(run);
  for_each_word(run, [this](std::size_t word, std::uint64_t mask) {
    PF_CHECK((taken_[word] & mask) == mask && (sent_[word] & mask) == 0);
    taken_[word] &= ~mask;
  });
  pages_taken_ -= run.pages;
}

void SentMap::mark_sent(PageRun run) {
  check_inside(run);
  for_each_word(run, [this](std::size_t word, std::uint64_t mask) {
    PF_CHECK((taken_[word] & mask) == mask && (sent_[word] & mask) == 0);
    sent_[word] |= mask;
  });
  pages_sent_ += run.pages;
}

void SentMap::take_back(PageRun run) {
  check_inside(run);
  for_each_word(run, [this](std::size_t word, std::uint64_t mask) {
    PF_CHECK((sent_[word] & mask) == mask);
    sent_[word] &= ~mask;
  });
  pages_sent_ -= run.pages;
}

void SentMap::mark_received(PageRun run) {
  take(run);
  mark_sent(run);
}

std::optional<PageIndex> SentMap::next_absent(PageIndex from, PageIndex end) const {
  PF_CHECK(raw(end) <= pages_);
  std::uint64_t page = raw(from);
  while (page < raw(end)) {
    const std::uint64_t absent = ~taken_[page / kPagesPerWord] >> (page % kPagesPerWord);
    if (absent != 0) {
      page += static_cast<std::uint64_t>(std::countr_zero(absent));
      if (page >= raw(end)) return std::nullopt;
      return PageIndex{page};
    }
    page = (page / kPagesPerWord + 1) * kPagesPerWord;
  }
  return std::nullopt;
}

std::uint64_t SentMap::absent_run(PageIndex first, std::uint64_t pages_max) const {
  check_inside({first, 0});
  const std::uint64_t end = raw(first) + std::min(pages_max, pages_ - raw(first));
  std::uint64_t page = raw(first);
  while (page < end) {
    const std::uint64_t bit = page % kPagesPerWord;
    const std::uint64_t taken = taken_[page / kPagesPerWord] >> bit;
    if (taken != 0) {
      page += static_cast<std::uint64_t>(std::countr_zero(taken));
      break;
    }
    page += kPagesPerWord - bit;
  }
  return std::min(page, end) - raw(first);
}

}  // namespace pageferry
