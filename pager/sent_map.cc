// Two bitmaps, walked a word (64 pages) at a time. Invariants:
//   I1  a page is taken at most once while it is not given back: take() aborts on a page that is
//   already taken I2  sent is a subset of taken
#include "pager/sent_map.h"

#include <algorithm>
#include <bit>

#include "transport/os/error.h"

namespace pageferry {
namespace {

constexpr std::uint64_t kBits = 64;
constexpr std::uint64_t kAllOnes = ~std::uint64_t{0};

// Calls visit(word index, mask of the run's bits in that word) for each word that the run touches.
template <typename Visit>
void for_each_word(PageRun run, Visit visit) {
  std::uint64_t page = raw(run.first);
  std::uint64_t left = run.pages;
  while (left > 0) {
    const std::uint64_t bit = page % kBits;
    const std::uint64_t count = std::min(left, kBits - bit);
    const std::uint64_t mask = (count == kBits ? kAllOnes : (std::uint64_t{1} << count) - 1) << bit;
    visit(static_cast<std::size_t>(page / kBits), mask);
    page += count;
    left -= count;
  }
}

}  // namespace

SentMap::SentMap(std::uint64_t pages)
    : pages_(pages), taken_((pages + kBits - 1) / kBits), sent_((pages + kBits - 1) / kBits) {}

void SentMap::check_inside(PageRun run) const {
  PF_CHECK(run.pages <= pages_ && raw(run.first) <= pages_ - run.pages);
}

PageState SentMap::state(PageIndex page) const {
  check_inside({page, 1});
  const std::size_t word = raw(page) / kBits;
  const std::uint64_t mask = std::uint64_t{1} << (raw(page) % kBits);
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

void SentMap::mark_received(PageRun run) {
  take(run);
  mark_sent(run);
}

std::optional<PageIndex> SentMap::next_absent(PageIndex from, PageIndex end) const {
  PF_CHECK(raw(end) <= pages_);
  std::uint64_t page = raw(from);
  while (page < raw(end)) {
    const std::uint64_t absent = ~taken_[page / kBits] >> (page % kBits);
    if (absent != 0) {
      page += static_cast<std::uint64_t>(std::countr_zero(absent));
      if (page >= raw(end)) return std::nullopt;
      return PageIndex{page};
    }
    page = (page / kBits + 1) * kBits;
  }
  return std::nullopt;
}

std::uint64_t SentMap::absent_run(PageIndex first, std::uint64_t pages_max) const {
  check_inside({first, 0});
  const std::uint64_t end = raw(first) + std::min(pages_max, pages_ - raw(first));
  std::uint64_t page = raw(first);
  while (page < end) {
    const std::uint64_t bit = page % kBits;
    const std::uint64_t taken = taken_[page / kBits] >> bit;
    if (taken != 0) {
      page += static_cast<std::uint64_t>(std::countr_zero(taken));
      break;
    }
    page += kBits - bit;
  }
  return std::min(page, end) - raw(first);
}

}  // namespace pageferry
