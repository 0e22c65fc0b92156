// A hint from the source's tool: what is not one is left out, and nothing else happens.
#include "tools/pageferry/map_block_message.h"

#include <gtest/gtest.h>

namespace pageferry {
namespace {

using nlohmann::json;

TEST(MapBlockMessageTest, RunsComeBackAsTheyWereSent) {
  const std::vector<MapBlockRun> runs = {{.first = 0, .blocks = 1}, {.first = 65, .blocks = 7}};
  EXPECT_EQ(map_block_runs_from_json(json::parse(map_block_runs_to_json(runs).dump())), runs);
}

TEST(MapBlockMessageTest, WhatIsNoRunIsLeftOut) {
  EXPECT_TRUE(map_block_runs_from_json(json("all")).empty());
  const json mixed = json::parse(R"([[1], [2, -1], ["3", 4], {"first": 5}, [6, 7, 8], [9, 10]])");
  EXPECT_EQ(map_block_runs_from_json(mixed),
            (std::vector<MapBlockRun>{{.first = 9, .blocks = 10}}));
}

}  // namespace
}  // namespace pageferry
