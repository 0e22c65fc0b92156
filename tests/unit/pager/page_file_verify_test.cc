// The verifier must pass good files, name every bad page of a bad one, and see two pages that claim
// one place.
#include <gtest/gtest.h>

#include "fakes/page_file_fixture.h"
#include "pager/page_file_verify.h"

namespace pageferry {
namespace {

using namespace testing_support;

class PageFileVerifyTest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kPages = 600;

  void SetUp() override {
    const auto writer = writer_on(disk_, layout_of({{"pc.ram", kPages}}));
    ASSERT_NE(writer, nullptr);
    writer->begin_pass(1);
    for (std::uint64_t page = 0; page < 500; ++page) ASSERT_TRUE(put(*writer, page, 1));
    ASSERT_TRUE(writer->begin_blackout());
    for (std::uint64_t page = 3; page < 500; page += 7) ASSERT_TRUE(put(*writer, page, 2));
    ASSERT_TRUE(writer->finish_and_commit());
    file_ = std::make_unique<MemoryStorage>(disk_);
    Result<PageFileImage> image = PageFileImage::load(*file_, std::uint64_t{1} << 20, {});
    ASSERT_TRUE(image.has_value()) << image.error().message;
    image_ = std::move(*image);
  }
  VerifyReport verify() {
    const Result<VerifyReport> report = verify_pages(*file_, image_, {}, {}, {}, {});
    EXPECT_TRUE(report.has_value()) << report.error().message;
    return report.value_or(VerifyReport{});
  }
  void flip(std::uint64_t page) {
    disk_.live[image_.map.get(PageIndex{page}).block() * kFileBlockBytes + 99] ^= std::byte{4};
  }

  MemoryDisk disk_;
  std::unique_ptr<MemoryStorage> file_;
  PageFileImage image_;
};

TEST_F(PageFileVerifyTest, AGoodFileHasNoBadPages) {
  const VerifyReport report = verify();
  EXPECT_EQ(report.pages_checked, 500U);
  EXPECT_EQ(report.bad_pages, 0U);
}

TEST_F(PageFileVerifyTest, EveryFlippedPageIsNamed) {
  flip(0);
  flip(3);  // in the tail
  flip(499);
  const VerifyReport report = verify();
  EXPECT_EQ(report.bad_pages, 3U);
  ASSERT_EQ(report.bad.size(), 3U);
  std::string all = report.bad[0] + report.bad[1] + report.bad[2];
  EXPECT_NE(all.find("page 0 (RAM block 'pc.ram' offset 0x0,"), std::string::npos) << all;
  EXPECT_NE(all.find("page 3 (RAM block 'pc.ram' offset 0x3000,"), std::string::npos) << all;
  EXPECT_NE(all.find("page 499 "), std::string::npos) << all;
}

TEST_F(PageFileVerifyTest, OldContentOfAHomeSlotIsNotLookedAt) {
  // Page 3 lives in the tail; its home slot is the fourth.
  const std::uint64_t slot = image_.header.slots_offset / kFileBlockBytes + 3;
  disk_.live[slot * kFileBlockBytes] ^= std::byte{1};
  EXPECT_EQ(verify().bad_pages, 0U);
}

TEST_F(PageFileVerifyTest, TwoPagesInOnePlaceAreCorrupt) {
  image_.map.set(PageIndex{10}, image_.map.get(PageIndex{11}));
  const Result<VerifyReport> report = verify_pages(*file_, image_, {}, {}, {}, {});
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code, Errc::corrupt);
  EXPECT_NE(report.error().message.find("pages 10 and 11"), std::string::npos);
}

TEST_F(PageFileVerifyTest, ACancelEndsIt) {
  CancelSignal cancel;
  cancel.cancel();
  file_->hold_completions();
  const Result<VerifyReport> report =
      verify_pages(*file_, image_, {}, {}, {&cancel, Deadline::never()}, {});
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code, Errc::canceled);
}

TEST_F(PageFileVerifyTest, TheSummaryCountsPages) {
  const PageFileSummary summary = summarize("x", image_);
  EXPECT_EQ(summary.memory_bytes, bytes_of_pages(kPages));
  EXPECT_EQ(summary.stored_pages, 500U);
  EXPECT_EQ(summary.zero_pages, 100U);
  EXPECT_EQ(summary.tail_pages, 71U);
  EXPECT_EQ(summary.commit_id, "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf");
}

}  // namespace
}  // namespace pageferry
