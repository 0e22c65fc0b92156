// BasePlan: what a new page file may leave where it is, when every page that was written since `base` was committed will be put into it.
// `base` may have bases itself: then the new file names those directly that still hold pages, so that a reader never goes through more than
// one map.
//
//   base:  page 0 in itself, page 1 in its base 1        new file:  bases are base itself (1) and that file (2)
//
// A file stays on the store as a whole for each page that is needed of it. So there is an end to it: too many files, or files most of which
// nobody needs, and the answer is a full write.
//
// Thread rule: values and pure functions.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "pager/page_file_format.h"
#include "pager/page_file_image.h"
#include "transport/os/error.h"

namespace pageferry {

// Bases are given up when they hold more than this many times the blocks that are needed of them.
inline constexpr std::uint64_t kBaseBlocksPerPageMax = 3;

struct BasePlan {
  std::vector<PageFileBase> bases;  // of the new file; empty: the base holds no page with content
  // Number in the new file for each in the base image, 0 of which is the base itself. 0: no page is needed of it.
  std::array<std::uint8_t, kBasesMax + 1> numbers{};
  std::uint64_t pages = 0;  // that have content

  // The entry of the new file for a page that has not been written since. Precondition: an entry of that base image.
  MapEntry carried(const MapEntry& entry) const;
};

// Errors: unsupported, and why a full write is due.
Result<BasePlan> plan_bases(const PageFileImage& base);

}  // namespace pageferry
