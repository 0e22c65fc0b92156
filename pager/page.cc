// Zero detection: OR the page together 64 bytes at a time and give up at the first 256 bytes that
// are not zero; most pages that are not zero differ early, and those that are get read once at
// memory speed.
#include "pager/page.h"

#include <cstring>

namespace pageferry {

bool is_zero_page(PageBytes page) {
  constexpr std::size_t kStrideBytes = 256;
  static_assert(kPageSizeBytes % kStrideBytes == 0);
  for (std::size_t offset = 0; offset < kPageSizeBytes; offset += kStrideBytes) {
    std::uint64_t words[kStrideBytes / sizeof(std::uint64_t)];
    std::memcpy(words, page.data() + offset, kStrideBytes);
    std::uint64_t any = 0;
    for (std::uint64_t word : words) any |= word;
    if (any != 0) return false;
  }
  return true;
}

}  // namespace pageferry
