// Both directions in one place.
#include "tools/pageferry/map_block_message.h"

namespace pageferry {

nlohmann::json map_block_runs_to_json(const std::vector<MapBlockRun>& runs) {
  nlohmann::json json = nlohmann::json::array();
  for (const MapBlockRun& run : runs) json.push_back({run.first, run.blocks});
  return json;
}

std::vector<MapBlockRun> map_block_runs_from_json(const nlohmann::json& json) {
  std::vector<MapBlockRun> runs;
  if (!json.is_array()) return runs;
  for (const nlohmann::json& run : json) {
    const bool sound = run.is_array() && run.size() == 2 && run[0].is_number_unsigned() &&
                       run[1].is_number_unsigned();
    if (sound) runs.push_back({run[0].get<std::uint64_t>(), run[1].get<std::uint64_t>()});
  }
  return runs;
}

}  // namespace pageferry
