// The limits are those of every other place that takes a RAM block from outside (memory_layout.h).
#include "vmstate/ram_block_json.h"

namespace pageferry {

nlohmann::json ram_block_to_json(const RamBlock& block) {
  return {{"name", block.name},
          {"bytes", block.length_bytes},
          {"backing-page-bytes", block.backing_page_bytes}};
}

RamBlock read_ram_block(JsonMembers& members) {
  RamBlock block;
  block.name = members.text("name", 1, kBlockNameBytesMax);
  block.length_bytes = members.number("bytes", 1, kMemoryBytesMax);
  block.backing_page_bytes =
      members.number("backing-page-bytes", kPageSizeBytes, kBackingPageBytesMax);
  return block;
}

}  // namespace pageferry
