// Zero detection: OR the page together a stride at a time and give up at the first stride that is not
// zero; most pages that are not zero differ early, and those that are get read once at memory speed.
//
// Written with the compiler's vector types (GCC manual, "Vector Extensions"; clang has them too): GCC 12
// leaves a loop over words scalar at -O2, at a third of the speed.
#include "pager/page.h"

#include <cstring>

namespace pageferry {
namespace {

using Words = std::uint64_t __attribute__((vector_size(16)));
constexpr std::size_t kStrideBytes = 256;
static_assert(kPageSizeBytes % kStrideBytes == 0);

Words load(const std::byte* from) {
  Words words;
  std::memcpy(&words, from, sizeof words);
  return words;
}

}  // namespace

bool is_zero_page(PageBytes page) {
  for (std::size_t offset = 0; offset < kPageSizeBytes; offset += kStrideBytes) {
    const std::byte* from = page.data() + offset;
    // Four sums, so that one OR need not wait for the one before.
    Words a{};
    Words b{};
    Words c{};
    Words d{};
    for (std::size_t at = 0; at < kStrideBytes; at += 4 * sizeof(Words)) {
      a |= load(from + at);
      b |= load(from + at + sizeof(Words));
      c |= load(from + at + 2 * sizeof(Words));
      d |= load(from + at + 3 * sizeof(Words));
    }
    const Words all = (a | b) | (c | d);
    if ((all[0] | all[1]) != 0) return false;
  }
  return true;
}

}  // namespace pageferry
