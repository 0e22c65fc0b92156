// The state of the demo VMM, version 1: the committed bytes are decoded and encoded again; whatever else is not taken.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "golden/demo_vm_state_v1.h"
#include "transport/crc32c.h"
#include "transport/little_endian.h"

namespace pageferry::demo {
namespace {

using testing::HasSubstr;

std::vector<std::byte> golden_bytes() {
  std::ifstream in(PAGEFERRY_GOLDEN_DIR "/demo_vm_state_v1.bin", std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  return {bytes.begin(), bytes.end()};
}

// With the checksum that belongs to it.
std::vector<std::byte> signed_again(std::vector<std::byte> bytes) {
  store_le(std::span(bytes), bytes.size() - 4,
           crc32c(std::span<const std::byte>(bytes).first(bytes.size() - 4)));
  return bytes;
}
std::string refusal(const std::vector<std::byte>& bytes) {
  const auto state = decode_vm_state(bytes);
  return state ? "" : state.error().message;
}

TEST(DemoVmStateGolden, Version1IsReadAsItWasWritten) {
  const auto state = decode_vm_state(golden_bytes());
  ASSERT_TRUE(state) << state.error().message;
  EXPECT_EQ(*state, testing_support::demo_vm_state_v1());
}
TEST(DemoVmStateGolden, Version1IsWrittenAsItWas) {
  EXPECT_EQ(encode_vm_state(testing_support::demo_vm_state_v1()), golden_bytes());
}
TEST(DemoVmState, EachFlippedByteIsCorrupt) {
  const auto good = golden_bytes();
  for (std::size_t at = 0; at < good.size(); ++at) {
    auto bytes = good;
    bytes[at] ^= std::byte{0x40};
    EXPECT_FALSE(decode_vm_state(bytes)) << at;
  }
}
TEST(DemoVmState, EachLengthButTheRightOneIsCorrupt) {
  const auto good = golden_bytes();
  for (std::size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(decode_vm_state(std::span(good).first(size))) << size;
  }
}
TEST(DemoVmState, ANewerVersionIsRefusedAsSuch) {
  auto bytes = golden_bytes();
  store_le(std::span(bytes), 8, std::uint32_t{2});
  const auto state = decode_vm_state(signed_again(bytes));
  ASSERT_FALSE(state);
  EXPECT_EQ(state.error().code, Errc::version);
}
TEST(DemoVmState, FieldsBeyondTheirLimitsAreRefusedByName) {
  const auto with = [](std::size_t at, std::uint32_t value) {
    auto bytes = golden_bytes();
    store_le(std::span(bytes), at, value);
    return refusal(signed_again(bytes));
  };
  EXPECT_THAT(with(16, 3), HasSubstr("vCPU kind is 3"));
  EXPECT_THAT(with(20, 0), HasSubstr("number of vCPUs is 0"));
  EXPECT_THAT(with(20, 17), HasSubstr("number of vCPUs is 17"));
  EXPECT_THAT(with(24, 65), HasSubstr("disk requests is 65"));
  EXPECT_THAT(with(28, 4), HasSubstr("turns is 4"));
  EXPECT_THAT(with(72, 2), HasSubstr("vCPU of a disk request is 2"));
  EXPECT_THAT(with(120, 9), HasSubstr("pieces of a vCPU is 9"));
  EXPECT_THAT(with(132, 65'537), HasSubstr("piece length is 65537"));
  EXPECT_THAT(with(20, 3), HasSubstr("ends before pieces of a vCPU"));
}

}  // namespace
}  // namespace pageferry::demo
