// TouchRecord: what was noted comes back from the file, and nothing else is taken for a record.
#include "pager/touch_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "fakes/page_content.h"
#include "transport/crc32c.h"
#include "transport/little_endian.h"

namespace pageferry {
namespace {

using namespace testing_support;

using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::layout_of;

const MemoryLayout& layout() {
  static const MemoryLayout two_blocks = layout_of({{"ram", 1000}, {"rom", 24}});
  return two_blocks;
}

TouchRecord sample() {
  TouchRecord record;
  record.note(run(500, 16));
  record.note(run(3, 1));
  record.note(run(1000, 24));
  return record;
}

// A sample file with a change, its checksum made right again.
Error refused(const std::function<void(std::vector<std::byte>&)>& change) {
  std::vector<std::byte> bytes = sample().encode(layout());
  change(bytes);
  const std::size_t checked = bytes.size() - sizeof(std::uint32_t);
  store_le(std::span<std::byte>(bytes), checked, crc32c(std::span(bytes).first(checked)));
  const auto record = TouchRecord::decode(bytes, layout());
  EXPECT_FALSE(record);
  return record ? Error{} : record.error();
}

TEST(TouchRecord, ComesBackAsItWasEncoded) {
  const auto again = TouchRecord::decode(sample().encode(layout()), layout());
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(*again, sample());
}

TEST(TouchRecord, AnEmptyOneComesBackEmpty) {
  const auto again = TouchRecord::decode(TouchRecord().encode(layout()), layout());
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_TRUE(again->empty());
}

TEST(TouchRecord, ARunThatContinuesTheLastMakesItLonger) {
  TouchRecord record;
  record.note(run(16, 4));
  record.note(run(20, 2));
  record.note(run(10, 1));
  EXPECT_THAT(record.runs(), ElementsAre(run(16, 6), run(10, 1)));
}

TEST(TouchRecord, IsFullOneDay) {
  TouchRecord record;
  for (std::uint64_t i = 0; i < kTouchRunsMax + 5; ++i) record.note(run(2 * i, 1));
  EXPECT_EQ(record.runs().size(), kTouchRunsMax);
  const MemoryLayout large = layout_of({{"ram", 2 * kTouchRunsMax + 10}});
  EXPECT_LE(record.encode(large).size(), kTouchRecordBytesMax);
}

TEST(TouchRecord, EachFlippedBitIsNoticed) {
  const std::vector<std::byte> bytes = sample().encode(layout());
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::vector<std::byte> damaged = bytes;
    damaged[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    EXPECT_FALSE(TouchRecord::decode(damaged, layout())) << bit;
  }
}

TEST(TouchRecord, EachTruncationIsNoticed) {
  const std::vector<std::byte> bytes = sample().encode(layout());
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(TouchRecord::decode(std::span(bytes).first(size), layout())) << size;
  }
}

TEST(TouchRecord, OneOfAnotherVmIsRefused) {
  const std::vector<std::byte> bytes = sample().encode(layout());
  const auto renamed = TouchRecord::decode(bytes, layout_of({{"ram", 1000}, {"vga", 24}}));
  ASSERT_FALSE(renamed);
  EXPECT_EQ(renamed.error().code, Errc::invalid);
  EXPECT_FALSE(TouchRecord::decode(bytes, layout_of({{"ram", 1000}})));
}

TEST(TouchRecord, ALaterVersionIsRefused) {
  const Error error = refused([](auto& bytes) { bytes[8] = std::byte{2}; });
  EXPECT_EQ(error.code, Errc::version);
}

TEST(TouchRecord, ARunOutsideTheGuestIsRefused) {
  const Error error = refused([](auto& bytes) { bytes[48 + 9] = std::byte{255}; });
  EXPECT_EQ(error.code, Errc::invalid) << error.message;
  EXPECT_THAT(refused([](auto& bytes) { bytes[48 + 7] = std::byte{255}; }).message,
              HasSubstr("run 0"));
  EXPECT_THAT(refused([](auto& bytes) { bytes[48 + 8] = std::byte{0}; }).message,
              HasSubstr("run 0"));
}

TEST(TouchRecord, MoreRunsThanThereMayBeAreRefusedBeforeAnythingIsReserved) {
  const Error error = refused([](auto& bytes) { bytes[15] = std::byte{255}; });
  EXPECT_EQ(error.code, Errc::invalid) << error.message;
}

TEST(TouchRecord, BytesKeptForLaterVersionsMustBeZero) {
  const Error error = refused([](auto& bytes) { bytes[30] = std::byte{1}; });
  EXPECT_EQ(error.code, Errc::invalid) << error.message;
}

}  // namespace
}  // namespace pageferry
