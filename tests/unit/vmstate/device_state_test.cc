// Goal: a state file comes back as it was written, the format of version 1 never changes, and no
// damaged file is believed. Method: round trips, the golden file, every byte flipped, every
// truncation, each length beyond its limit with a right checksum.
#include "vmstate/device_state.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

#include "transport/crc32c.h"

namespace pageferry {
namespace {

std::vector<std::byte> bytes_of(std::string_view text) {
  std::vector<std::byte> out;
  for (char c : text) out.push_back(static_cast<std::byte>(c));
  return out;
}

QemuState sample() {
  QemuState state;
  state.machine_type = "pc-q35-7.2";
  state.configuration = bytes_of(std::string_view("\x07\0\0\0\x0apc-q35-7.2", 15));
  auto layout = MemoryLayout::make(
      {{.name = "pc.ram", .length_bytes = 8 << 20, .backing_page_bytes = 2 << 20},
       {.name = "/rom@etc/acpi/rsdp", .length_bytes = 4096}});
  EXPECT_TRUE(layout.has_value());
  state.layout = *layout;
  state.device_sections = bytes_of("\x04sections");
  state.vmdesc_json = R"({"page_size":4096,"devices":[]})";
  return state;
}

void expect_equal(const QemuState& a, const QemuState& b) {
  EXPECT_EQ(a.machine_type, b.machine_type);
  EXPECT_EQ(a.configuration, b.configuration);
  EXPECT_EQ(a.layout, b.layout);
  EXPECT_EQ(a.device_sections, b.device_sections);
  EXPECT_EQ(a.vmdesc_json, b.vmdesc_json);
}

Error error_of(const std::vector<std::byte>& bytes) {
  auto state = decode_qemu_state(bytes);
  return state ? Error{Errc::exists, 0, "no error"} : state.error();
}

void put_le32(std::vector<std::byte>& bytes, std::size_t at, std::uint32_t value) {
  for (std::size_t i = 0; i < 4; ++i) bytes[at + i] = static_cast<std::byte>(value >> (8 * i));
}

// `bytes` with the u32 at `at` replaced and the header's checksum made right again.
std::vector<std::byte> with_header_field(std::vector<std::byte> bytes, std::size_t at,
                                         std::uint32_t value) {
  put_le32(bytes, at, value);
  put_le32(bytes, 60, crc32c(std::span(bytes).first(60)));
  return bytes;
}

TEST(DeviceStateTest, ComesBackAsItWasWritten) {
  auto state = decode_qemu_state(encode_qemu_state(sample()));
  ASSERT_TRUE(state.has_value()) << state.error().message;
  expect_equal(*state, sample());
}

TEST(DeviceStateTest, GoldenFileOfVersion1IsReadAndWrittenTheSame) {
  std::ifstream file(PAGEFERRY_GOLDEN_DIRECTORY "/device_state_v1.bin", std::ios::binary);
  ASSERT_TRUE(file.good()) << PAGEFERRY_GOLDEN_DIRECTORY "/device_state_v1.bin";
  std::ostringstream read;
  read << file.rdbuf();
  const std::string content = read.str();
  auto state = decode_qemu_state(bytes_of(content));
  ASSERT_TRUE(state.has_value()) << state.error().message;
  expect_equal(*state, sample());
  EXPECT_EQ(encode_qemu_state(*state), bytes_of(content));
}

TEST(DeviceStateTest, AnyFlippedBitIsNoticed) {
  const auto good = encode_qemu_state(sample());
  for (std::size_t i = 0; i < good.size() * 8; ++i) {
    auto bad = good;
    bad[i / 8] ^= static_cast<std::byte>(1U << (i % 8));
    ASSERT_FALSE(decode_qemu_state(bad).has_value()) << "bit " << i;
  }
}

TEST(DeviceStateTest, AnyTruncationIsNoticed) {
  const auto good = encode_qemu_state(sample());
  for (std::size_t length = 0; length < good.size(); ++length) {
    const auto error = error_of({good.begin(), good.begin() + static_cast<std::ptrdiff_t>(length)});
    ASSERT_EQ(error.code, Errc::corrupt) << length;
  }
}

TEST(DeviceStateTest, AppendedBytesAreNoticed) {
  auto longer = encode_qemu_state(sample());
  longer.push_back(std::byte{0});
  EXPECT_EQ(error_of(longer).code, Errc::corrupt);
}

TEST(DeviceStateTest, OtherVersionIsNamed) {
  const auto error = error_of(with_header_field(encode_qemu_state(sample()), 8, 2));
  EXPECT_EQ(error.code, Errc::version);
  EXPECT_EQ(error.message, "state file: version 2, this program reads version 1");
}

TEST(DeviceStateTest, ForeignFileIsNamed) {
  EXPECT_EQ(error_of(std::vector<std::byte>(100)).message,
            "state file: does not begin with PFSTATE, it is not one of ours");
}

TEST(DeviceStateTest, OversizeFieldsAreRefusedByName) {
  const auto good = encode_qemu_state(sample());
  EXPECT_EQ(error_of(with_header_field(good, 12, 256)).message,
            "state file: machine type length is 256, must be 1 to 255");
  EXPECT_EQ(error_of(with_header_field(good, 16, 65537)).message,
            "state file: configuration length is 65537, must be 1 to 65536");
  EXPECT_EQ(error_of(with_header_field(good, 20, 1025)).message,
            "state file: number of RAM blocks is 1025, must be 1 to 1024");
  EXPECT_EQ(error_of(with_header_field(good, 36, 1)).message,
            "state file: device state length is 4294967305, must be 0 to 268435456");
  EXPECT_EQ(error_of(with_header_field(good, 44, 0x10000000)).code, Errc::corrupt);
}

TEST(DeviceStateTest, LengthsThatDoNotAddUpAreRefused) {
  EXPECT_EQ(error_of(with_header_field(encode_qemu_state(sample()), 12, 9)).message,
            "state file: 205 bytes, its header says 205 and its parts add up to 204");
}

TEST(DeviceStateTest, BlockTableThatContradictsItselfIsRefused) {
  auto bytes = encode_qemu_state(sample());
  put_le32(bytes, 64 + 10 + 15, 4000);  // name length of the first block
  put_le32(bytes, bytes.size() - 4, crc32c(std::span(bytes).subspan(64, bytes.size() - 68)));
  EXPECT_EQ(error_of(bytes).message, "state file: RAM block name length is 4000, must be 1 to 48");
}

}  // namespace
}  // namespace pageferry
