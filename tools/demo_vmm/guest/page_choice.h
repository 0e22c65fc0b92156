// Which page comes next: uniform, zipf or sequential over `pages` pages. The choice is a function of a state of two words, which is the
// vCPU's own and goes with it: after a move the guest chooses on as if nothing had been.
//
// Zipf with exponent 1, in whole numbers: first a power of two 2^k <= pages, each equally likely, then a rank in [2^k, 2^(k+1)), so that
// the chance of a rank falls as 1 / rank does. Ranks are strewn over the pages by a multiplication, as the hot pages of a real guest are.
//
// Thread rule: values. No host library.
#pragma once

#include "tools/demo_vmm/guest/page_pattern.h"

namespace pageferry::demo {

struct ChoiceState {
  std::uint64_t random = 0;
  std::uint64_t cursor = 0;
};

constexpr std::uint64_t next_random(ChoiceState& state) {
  state.random += 0x9e3779b97f4a7c15ULL;
  return mixed(state.random);
}

// Precondition: count > 0.
constexpr std::uint64_t uniform_below(ChoiceState& state, std::uint64_t count) {
  return next_random(state) % count;
}

// Rank 0 is the most likely one. Precondition: count > 0.
constexpr std::uint64_t zipf_below(ChoiceState& state, std::uint64_t count) {
  const unsigned powers = 64U - static_cast<unsigned>(__builtin_clzll(count));
  for (;;) {
    const auto power = static_cast<unsigned>(uniform_below(state, powers));
    const std::uint64_t first = std::uint64_t{1} << power;
    const std::uint64_t rank = first + uniform_below(state, first);
    if (rank <= count) return rank - 1;
  }
}

// A multiplier that strews [0, count) over itself: odd, near the golden section of count, without a common divisor.
constexpr std::uint64_t strewing_multiplier(std::uint64_t count) {
  const auto divisor = [](std::uint64_t a, std::uint64_t b) {
    while (b != 0) {
      const std::uint64_t rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  };
  std::uint64_t multiplier = (count / 1'000 * 618 + count % 1'000 * 618 / 1'000) | 1;
  while (divisor(multiplier, count) != 1) multiplier += 2;
  return multiplier;
}

// Precondition: 0 < pages < 2^32; `multiplier` is strewing_multiplier(pages).
constexpr std::uint64_t choose(ChoiceState& state, Distribution distribution, std::uint64_t pages,
                               std::uint64_t multiplier) {
  if (distribution == Distribution::uniform) return uniform_below(state, pages);
  if (distribution == Distribution::zipf) {
    return zipf_below(state, pages) * multiplier % pages;
  }
  const std::uint64_t page = state.cursor;
  state.cursor = page + 1 < pages ? page + 1 : 0;
  return page;
}

}  // namespace pageferry::demo
