// The state file of a VMM with a hook: what goes in comes out, version 1 stays readable (golden file), and nothing wrong is believed.
#include "vmstate/hook_state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

namespace pageferry {
namespace {

HookDeviceState sample() {
  HookDeviceState state{.machine = "demo_vmm 1, 2 vCPUs", .state = std::vector<std::byte>(64)};
  for (std::size_t i = 0; i < state.state.size(); ++i) state.state[i] = static_cast<std::byte>(i);
  return state;
}

std::vector<std::byte> encoded() {
  return encode_hook_state(sample().machine, sample().state);
}

TEST(HookStateTest, GoldenFileOfVersion1IsReadAndWrittenTheSame) {
  std::ifstream file(PAGEFERRY_GOLDEN_DIRECTORY "/hook_state_v1.bin", std::ios::binary);
  ASSERT_TRUE(file.good());
  std::ostringstream read;
  read << file.rdbuf();
  const std::string content = read.str();
  const auto bytes = std::as_bytes(std::span(content));
  const auto state = decode_hook_state(bytes);
  ASSERT_TRUE(state) << state.error().message;
  EXPECT_EQ(*state, sample());
  EXPECT_TRUE(std::ranges::equal(encoded(), bytes));
}

TEST(HookStateTest, AnEmptyStateIsOne) {
  const auto state = decode_hook_state(encode_hook_state("m", {}));
  ASSERT_TRUE(state) << state.error().message;
  EXPECT_TRUE(state->state.empty());
}

TEST(HookStateTest, EveryFlippedBitIsNoticed) {
  const auto good = encoded();
  for (std::size_t i = 0; i < good.size() * 8; ++i) {
    auto bad = good;
    bad[i / 8] ^= static_cast<std::byte>(1U << (i % 8));
    EXPECT_FALSE(decode_hook_state(bad)) << "bit " << i;
  }
}

TEST(HookStateTest, EveryCutIsNoticed) {
  const auto good = encoded();
  for (std::size_t length = 0; length < good.size(); ++length) {
    EXPECT_FALSE(decode_hook_state(std::span(good).first(length))) << length;
  }
}

TEST(HookStateTest, AnotherVersionIsRefusedAsSuch) {
  auto other = encoded();
  other[8] = std::byte{2};
  const auto state = decode_hook_state(other);
  ASSERT_FALSE(state);
  EXPECT_EQ(state.error().code, Errc::version);
}

}  // namespace
}  // namespace pageferry
