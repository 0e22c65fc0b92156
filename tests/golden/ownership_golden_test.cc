// Format version 1 of ownership records: the files in ownership/ were written once and are never changed. They are read as
// what they are, and written again byte for byte.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <string>

#include "golden/ownership_records_v1.h"

namespace pageferry {
namespace {

std::string bytes_of(const std::string& name) {
  std::ifstream in(fmt::format("{}/ownership/{}", PAGEFERRY_GOLDEN_DIR, name), std::ios::binary);
  EXPECT_TRUE(in) << name;
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(OwnershipGolden, EveryRecordOfVersionOneIsReadAsItWasMeant) {
  for (const OwnershipRecord& record : testing_support::golden_records_v1()) {
    const auto decoded = decode_record_file(record.file_name(), bytes_of(record.file_name()));
    ASSERT_TRUE(decoded) << decoded.error().message;
    EXPECT_EQ(*decoded, record) << record.file_name();
  }
}

TEST(OwnershipGolden, EveryRecordOfVersionOneIsWrittenAgainByteForByte) {
  for (const OwnershipRecord& record : testing_support::golden_records_v1()) {
    const auto encoded = encode_record(record);
    ASSERT_TRUE(encoded) << encoded.error().message;
    EXPECT_EQ(*encoded, bytes_of(record.file_name())) << record.file_name();
  }
}

}  // namespace
}  // namespace pageferry
