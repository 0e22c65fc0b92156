// A RAM block as a member of the small checked files (checked_json.h): the manifest and the memory map say it alike.
//
// Thread rule: pure functions.
#pragma once

#include <nlohmann/json.hpp>

#include "pager/memory_layout.h"
#include "vmstate/checked_json.h"

namespace pageferry {

// name, bytes, backing-page-bytes.
nlohmann::json ram_block_to_json(const RamBlock& block);
// Reads those members, each within its limit; what is wrong `members` keeps for its finish(). MemoryLayout::make checks how they fit.
RamBlock read_ram_block(JsonMembers& members);

}  // namespace pageferry
