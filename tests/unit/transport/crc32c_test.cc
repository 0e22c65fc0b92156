// crc32c against the vectors of RFC 3720, appendix B.4.
#include "transport/crc32c.h"

#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <string_view>
#include <vector>

namespace pageferry {
namespace {

std::vector<std::byte> filled(std::size_t size, unsigned char value) {
  return std::vector<std::byte>(size, std::byte{value});
}

TEST(Crc32c, ZerosGiveTheRfcValue) {
  EXPECT_EQ(crc32c(filled(32, 0x00)), 0x8a9136aaU);
}

TEST(Crc32c, OnesGiveTheRfcValue) {
  EXPECT_EQ(crc32c(filled(32, 0xff)), 0x62a8ab43U);
}

TEST(Crc32c, IncrementingBytesGiveTheRfcValue) {
  std::vector<std::byte> bytes(32);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  EXPECT_EQ(crc32c(bytes), 0x46dd794eU);
}

TEST(Crc32c, DecrementingBytesGiveTheRfcValue) {
  std::vector<std::byte> bytes(32);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(31 - i);
  EXPECT_EQ(crc32c(bytes), 0x113fdb5cU);
}

TEST(Crc32c, IscsiReadCommandGivesTheRfcValue) {
  std::vector<std::byte> pdu(48, std::byte{0});
  pdu[0] = std::byte{0x01};
  pdu[1] = std::byte{0xc0};
  pdu[16] = std::byte{0x14};
  pdu[22] = std::byte{0x04};
  pdu[27] = std::byte{0x14};
  pdu[31] = std::byte{0x18};
  pdu[32] = std::byte{0x28};
  pdu[40] = std::byte{0x02};
  EXPECT_EQ(crc32c(pdu), 0xd9963a56U);
}

TEST(Crc32c, PiecesContinueEachOther) {
  const auto whole = filled(4096, 0xa5);
  const std::span<const std::byte> bytes(whole);
  EXPECT_EQ(crc32c_extend(crc32c(bytes.first(1000)), bytes.subspan(1000)), crc32c(bytes));
}

}  // namespace
}  // namespace pageferry
