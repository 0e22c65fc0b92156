// A record of first touches of format version 1, made once, by another program, from docs/touch-record-format.md: it must be readable for
// ever, and encode to the same bytes. A failure here means that the format changed: raise the version, keep this file.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <vector>

#include "fakes/page_content.h"
#include "pager/touch_record.h"

namespace pageferry {
namespace {

using testing::ElementsAre;

class TouchRecordGoldenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::ifstream in(PAGEFERRY_GOLDEN_DIR "/touch_record_v1.bin", std::ios::binary);
    ASSERT_TRUE(in.good());
    const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
    for (const char c : bytes) golden_.push_back(static_cast<std::byte>(c));
  }
  const MemoryLayout layout_ = testing_support::layout_of({{"ram", 1000}, {"rom", 24}});
  std::vector<std::byte> golden_;
};

TEST_F(TouchRecordGoldenTest, EveryRunIsStillThere) {
  const auto record = TouchRecord::decode(golden_, layout_);
  ASSERT_TRUE(record) << record.error().message;
  EXPECT_THAT(record->runs(), ElementsAre(PageRun{PageIndex{500}, 16}, PageRun{PageIndex{3}, 1},
                                          PageRun{PageIndex{1000}, 24}));
}

TEST_F(TouchRecordGoldenTest, EncodesToTheSameBytes) {
  const auto record = TouchRecord::decode(golden_, layout_);
  ASSERT_TRUE(record) << record.error().message;
  EXPECT_EQ(record->encode(layout_), golden_);
}

}  // namespace
}  // namespace pageferry
