// Fresh anonymous memory is zero, and an all-zero entry means "never stored, content zero": nothing
// to initialise.
#include "pager/page_map.h"

namespace pageferry {

Result<PageMap> PageMap::make(std::uint64_t pages) {
  PageMap map;
  map.pages_ = pages;
  PF_ASSIGN(map.memory_, AlignedMemory::map(map.blocks() * kFileBlockBytes));
  return map;
}

}  // namespace pageferry
