// Pages that are written straight from the guest's memory end up as those that were copied, in fewer and larger writes.
#include <gtest/gtest.h>

#include "fakes/page_file_fixture.h"
#include "transport/io_buffer.h"

namespace pageferry {
namespace {

using namespace testing_support;

constexpr std::uint64_t kLentGuestPages = 400;

class LentPagesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    memory_ = AlignedMemory::map(bytes_of_pages(kLentGuestPages)).value();
    for (std::uint64_t page = 0; page < kLentGuestPages; ++page) set(page, 1);
    writer_->begin_pass(1);
  }
  void set(std::uint64_t page, std::uint64_t age) {
    const PageArray content = content_of(page, age);
    std::copy(content.begin(), content.end(), memory_.data() + bytes_of_pages(page));
  }
  void clear(std::uint64_t page) {
    std::fill_n(memory_.data() + bytes_of_pages(page), kPageSizeBytes, std::byte{0});
  }
  Result<void> lend(std::uint64_t first, std::uint64_t pages) {
    return writer_->put_lent_pages({PageIndex{first}, pages},
                                   {memory_.data() + bytes_of_pages(first), bytes_of_pages(pages)});
  }
  void expect_stored_as_it_is() {
    ASSERT_TRUE(writer_->finish_and_commit());
    auto reader = open_reader(disk_);
    ASSERT_TRUE(reader.has_value()) << reader.error().message;
    for (std::uint64_t page = 0; page < kLentGuestPages; ++page) {
      const std::byte* at = memory_.data() + bytes_of_pages(page);
      EXPECT_EQ(read_page(**reader, page), std::vector<std::byte>(at, at + kPageSizeBytes)) << page;
    }
  }

  MemoryDisk disk_;
  MemoryLayout layout_ = layout_of({{"pc.ram", kLentGuestPages}});
  AlignedMemory memory_;
  std::unique_ptr<PageFileWriter> writer_ = writer_on(disk_, layout_);
};

TEST_F(LentPagesTest, AreReadBack) {
  ASSERT_TRUE(lend(0, kLentGuestPages));
  expect_stored_as_it_is();
}

TEST_F(LentPagesTest, ThatFollowEachOtherAreOneWriteUpToAChunk) {
  const std::uint64_t before = writer_->stats().writes;
  ASSERT_TRUE(lend(0, 20));
  writer_->begin_pass(2);
  EXPECT_EQ(pages_of_bytes(small_options().chunk_bytes), 16U);
  // 16 and 4 pages, and the map block that the new pass writes.
  EXPECT_EQ(writer_->stats().writes - before, 3U);
}

TEST_F(LentPagesTest, ZeroPagesBetweenThemTakeNoSpace) {
  for (const std::uint64_t page : {0U, 7U, 8U, 399U}) clear(page);
  ASSERT_TRUE(lend(0, kLentGuestPages));
  EXPECT_EQ(writer_->stats().zero_pages, 4U);
  expect_stored_as_it_is();
}

TEST_F(LentPagesTest, OfALaterPassGoToTheirHomeSlots) {
  ASSERT_TRUE(lend(0, kLentGuestPages));
  writer_->begin_pass(2);
  for (std::uint64_t page = 10; page < 30; ++page) set(page, 2);
  ASSERT_TRUE(lend(10, 20));
  EXPECT_EQ(writer_->stats().rewritten_pages, 20U);
  EXPECT_EQ(writer_->stats().home_pages, kLentGuestPages + 20);
  expect_stored_as_it_is();
}

TEST_F(LentPagesTest, AfterCopiedOnesReplaceThem) {
  for (std::uint64_t page = 0; page < kLentGuestPages; ++page) ASSERT_TRUE(put(*writer_, page, 9));
  ASSERT_TRUE(lend(0, kLentGuestPages));
  expect_stored_as_it_is();
}

TEST_F(LentPagesTest, OfTheBlackoutGoToTheTail) {
  ASSERT_TRUE(lend(0, kLentGuestPages));
  ASSERT_TRUE(writer_->begin_blackout());
  for (std::uint64_t page = 50; page < 60; ++page) set(page, 2);
  ASSERT_TRUE(lend(50, 10));
  EXPECT_EQ(writer_->stats().tail_pages, 10U);
  expect_stored_as_it_is();
}

TEST_F(LentPagesTest, OfTheBlackoutMayAlternateWithCopiedOnes) {
  ASSERT_TRUE(lend(0, kLentGuestPages));
  ASSERT_TRUE(writer_->begin_blackout());
  for (std::uint64_t page = 0; page < kLentGuestPages; page += 3) {
    set(page, 2);
    const PageBytes bytes(memory_.data() + bytes_of_pages(page), kPageSizeBytes);
    ASSERT_TRUE(page % 2 == 0 ? lend(page, 1) : writer_->put_page(PageIndex{page}, bytes));
  }
  expect_stored_as_it_is();
}

TEST_F(LentPagesTest, OfTheBlackoutMayBeMoreThanTheTailHolds) {
  ASSERT_TRUE(lend(0, kLentGuestPages));
  ASSERT_TRUE(writer_->begin_blackout());
  for (std::uint64_t page = 0; page < kLentGuestPages; ++page) set(page, 2);
  ASSERT_TRUE(lend(0, kLentGuestPages));
  EXPECT_GT(writer_->stats().tail_overflow_pages, 0U);
  expect_stored_as_it_is();
}

TEST_F(LentPagesTest, OnAFullStoreAreAnError) {
  disk_.bytes_max = kFileBlockBytes;
  Result<void> outcome = lend(0, kLentGuestPages);
  if (outcome) {
    const auto committed = writer_->finish_and_commit();
    ASSERT_FALSE(committed);
    outcome = tl::make_unexpected(committed.error());
  }
  EXPECT_EQ(outcome.error().code, Errc::no_space);
}

}  // namespace
}  // namespace pageferry
