// Map blocks that the source has written anew, as they travel to the agent, which reads them again.
//
// Thread rule: pure functions.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "pager/page_file_format.h"

namespace pageferry {

// [[first, blocks], ...]
nlohmann::json map_block_runs_to_json(const std::vector<MapBlockRun>& runs);
// What is no such list is no run: it is only a hint.
std::vector<MapBlockRun> map_block_runs_from_json(const nlohmann::json& json);

}  // namespace pageferry
