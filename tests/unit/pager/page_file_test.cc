// Writer and reader together, on a file in memory: whatever was put last is what is read, wherever
// it lies.
#include <gtest/gtest.h>

#include <thread>

#include "fakes/page_file_fixture.h"

namespace pageferry {
namespace {

using namespace testing_support;

constexpr std::uint64_t kFilePages = 1000;

class PageFileTest : public ::testing::Test {
 protected:
  MemoryDisk disk_;
  MemoryLayout layout_ = layout_of({{"pc.ram", kFilePages - 100}, {"vga.vram", 100}});
  std::unique_ptr<PageFileWriter> writer_ = writer_on(disk_, layout_);

  CommitInfo commit() {
    const Result<CommitInfo> info = writer_->finish_and_commit();
    EXPECT_TRUE(info.has_value()) << info.error().message;
    return info.value_or(CommitInfo{});
  }
  std::unique_ptr<PageFileReader> reopen() {
    auto reader = open_reader(disk_);
    EXPECT_TRUE(reader.has_value()) << reader.error().message;
    return reader ? std::move(*reader) : nullptr;
  }
};

TEST_F(PageFileTest, ReadsBackWhatTheFirstPassStored) {
  writer_->begin_pass(1);
  for (std::uint64_t page = 0; page < kFilePages; ++page) ASSERT_TRUE(put(*writer_, page, 1));
  commit();
  const auto reader = reopen();
  ASSERT_NE(reader, nullptr);
  for (std::uint64_t page = 0; page < kFilePages; ++page)
    EXPECT_TRUE(holds(*reader, page, 1)) << page;
}

TEST_F(PageFileTest, ALaterPassReplacesContentInItsHomeSlot) {
  writer_->begin_pass(1);
  for (std::uint64_t page = 0; page < kFilePages; ++page) ASSERT_TRUE(put(*writer_, page, 1));
  writer_->begin_pass(2);
  for (std::uint64_t page = 0; page < kFilePages; page += 3) ASSERT_TRUE(put(*writer_, page, 2));
  EXPECT_EQ(commit().record.slots, kFilePages);
  const auto reader = reopen();
  ASSERT_NE(reader, nullptr);
  for (std::uint64_t page = 0; page < kFilePages; ++page) {
    EXPECT_TRUE(holds(*reader, page, page % 3 == 0 ? 2 : 1)) << page;
  }
}

TEST_F(PageFileTest, TheBlackoutPassGoesToTheTail) {
  writer_->begin_pass(1);
  for (std::uint64_t page = 0; page < kFilePages; ++page) ASSERT_TRUE(put(*writer_, page, 1));
  ASSERT_TRUE(writer_->begin_blackout());
  for (std::uint64_t page = 5; page < kFilePages; page += 10) ASSERT_TRUE(put(*writer_, page, 2));
  const CommitInfo info = commit();
  EXPECT_EQ(info.record.tail_pages, 100U);
  EXPECT_EQ(writer_->stats().rewritten_pages, 0U);
  const auto reader = reopen();
  ASSERT_NE(reader, nullptr);
  for (std::uint64_t page = 0; page < kFilePages; ++page) {
    EXPECT_TRUE(holds(*reader, page, page % 10 == 5 ? 2 : 1)) << page;
  }
}

TEST_F(PageFileTest, BlackoutPagesHaveTheHighestVersion) {
  writer_->begin_pass(1);
  ASSERT_TRUE(put(*writer_, 1, 1));
  writer_->begin_pass(7);
  ASSERT_TRUE(put(*writer_, 2, 1));
  ASSERT_TRUE(writer_->begin_blackout());
  ASSERT_TRUE(put(*writer_, 3, 1));
  commit();
  const auto reader = reopen();
  ASSERT_NE(reader, nullptr);
  EXPECT_EQ(reader->version(PageIndex{0}), 0U);
  EXPECT_EQ(reader->version(PageIndex{1}), 1U);
  EXPECT_EQ(reader->version(PageIndex{2}), 7U);
  EXPECT_EQ(reader->version(PageIndex{3}), 8U);
}

TEST_F(PageFileTest, TwoVersionsOfAPageInOnePassGetDifferentNumbers) {
  writer_->begin_pass(4);
  ASSERT_TRUE(put(*writer_, 9, 1));
  ASSERT_TRUE(put(*writer_, 9, 2));
  ASSERT_TRUE(writer_->begin_blackout());
  ASSERT_TRUE(put(*writer_, 10, 1));
  commit();
  const auto reader = reopen();
  ASSERT_NE(reader, nullptr);
  EXPECT_EQ(reader->version(PageIndex{9}), 5U);
  EXPECT_GT(reader->version(PageIndex{10}), 5U);
  EXPECT_TRUE(holds(*reader, 9, 2));
}

TEST_F(PageFileTest, ZeroPagesTakeNoSpace) {
  writer_->begin_pass(1);
  const PageArray zero{};
  for (std::uint64_t page = 0; page < kFilePages; ++page) {
    ASSERT_TRUE(writer_->put_page(PageIndex{page}, zero));
  }
  const CommitInfo info = commit();
  EXPECT_EQ(info.record.slots, 0U);
  EXPECT_EQ(info.record.stored_pages, 0U);
  const auto reader = reopen();
  ASSERT_NE(reader, nullptr);
  EXPECT_TRUE(reader->is_zero(PageIndex{0}));
  EXPECT_TRUE(reader->is_zero(PageIndex{kFilePages - 1}));
}

TEST_F(PageFileTest, AStoredPageThatBecomesZeroReadsAsZero) {
  writer_->begin_pass(1);
  ASSERT_TRUE(put(*writer_, 20, 1));
  ASSERT_TRUE(put(*writer_, 21, 1));
  writer_->begin_pass(2);
  ASSERT_TRUE(writer_->put_zero(PageIndex{20}));
  ASSERT_TRUE(writer_->begin_blackout());
  ASSERT_TRUE(writer_->put_zero(PageIndex{21}));
  EXPECT_EQ(commit().record.stored_pages, 0U);
  const auto reader = reopen();
  ASSERT_NE(reader, nullptr);
  EXPECT_TRUE(reader->is_zero(PageIndex{20}));
  EXPECT_TRUE(reader->is_zero(PageIndex{21}));
}

TEST_F(PageFileTest, AZeroPageThatGetsContentAgainUsesItsOldSlot) {
  writer_->begin_pass(1);
  ASSERT_TRUE(put(*writer_, 20, 1));
  writer_->begin_pass(2);
  ASSERT_TRUE(writer_->put_zero(PageIndex{20}));
  writer_->begin_pass(3);
  ASSERT_TRUE(put(*writer_, 20, 3));
  EXPECT_EQ(commit().record.slots, 1U);
  const auto reader = reopen();
  ASSERT_NE(reader, nullptr);
  EXPECT_TRUE(holds(*reader, 20, 3));
}

TEST_F(PageFileTest, ATailThatOverflowsGoesOnBehindTheSlots) {
  writer_->begin_pass(1);
  for (std::uint64_t page = 0; page < kFilePages; ++page) ASSERT_TRUE(put(*writer_, page, 1));
  ASSERT_TRUE(writer_->begin_blackout());
  for (std::uint64_t page = 0; page < kFilePages; ++page) ASSERT_TRUE(put(*writer_, page, 2));
  EXPECT_EQ(commit().record.tail_pages, kFilePages);
  const std::uint64_t reserved = pages_of_bytes(small_options().tail_bytes_max);
  EXPECT_EQ(writer_->stats().tail_overflow_pages, kFilePages - reserved);
  const auto reader = reopen();
  ASSERT_NE(reader, nullptr);
  for (std::uint64_t page = 0; page < kFilePages; ++page)
    EXPECT_TRUE(holds(*reader, page, 2)) << page;
}

TEST_F(PageFileTest, LayoutAndCommitIdSurvive) {
  writer_->begin_pass(1);
  ASSERT_TRUE(put(*writer_, 0, 1));
  const CommitInfo info = commit();
  const auto reader = reopen();
  ASSERT_NE(reader, nullptr);
  EXPECT_EQ(reader->layout(), layout_);
  EXPECT_EQ(reader->record(), info.record);
  EXPECT_EQ(reader->record().commit_id, fixed_ids().commit_id);
}

TEST_F(PageFileTest, PagesThatFollowEachOtherAreOneRun) {
  writer_->begin_pass(1);
  for (std::uint64_t page = 890; page < 910; ++page) ASSERT_TRUE(put(*writer_, page, 1));
  commit();
  const auto reader = reopen();
  ASSERT_NE(reader, nullptr);
  EXPECT_EQ(reader->contiguous_run(PageIndex{890}, 4), (PageRun{PageIndex{890}, 4}));
  // The RAM block ends at 900, the stored pages at 910.
  EXPECT_EQ(reader->contiguous_run(PageIndex{890}, 100), (PageRun{PageIndex{890}, 10}));
  EXPECT_EQ(reader->contiguous_run(PageIndex{905}, 100), (PageRun{PageIndex{905}, 5}));
}

TEST_F(PageFileTest, NothingIsWrittenAfterTheCommit) {
  writer_->begin_pass(1);
  ASSERT_TRUE(put(*writer_, 0, 1));
  commit();
  const std::vector<std::byte> before = disk_.live;
  EXPECT_EQ(put(*writer_, 1, 1).error().code, Errc::invalid);
  EXPECT_EQ(writer_->finish_and_commit().error().code, Errc::invalid);
  writer_->begin_pass(2);
  EXPECT_EQ(disk_.live, before);
}

TEST_F(PageFileTest, APageBeyondTheGuestIsRefused) {
  writer_->begin_pass(1);
  const Result<void> refused = put(*writer_, kFilePages, 1);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, Errc::invalid);
  EXPECT_NE(refused.error().message.find("1000"), std::string::npos) << refused.error().message;
}

TEST(PageFileWriterTest, AFullStoreIsNoSpace) {
  MemoryDisk disk;
  disk.bytes_max = std::uint64_t{4} << 20;
  const auto writer = writer_on(disk, layout_of({{"pc.ram", 4096}}));
  ASSERT_NE(writer, nullptr);
  writer->begin_pass(1);
  Result<void> result;
  for (std::uint64_t page = 0; page < 4096 && result; ++page) result = put(*writer, page, 1);
  if (result) result = writer->begin_blackout();
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::no_space);
  EXPECT_EQ(writer->finish_and_commit().error().code, Errc::no_space);
}

TEST(PageFileWriterTest, AStoreTooSmallForTheTailIsRefusedAtTheBeginning) {
  MemoryDisk disk;
  disk.bytes_max = std::uint64_t{1} << 20;
  auto writer = PageFileWriter::make(std::make_unique<MemoryStorage>(disk), fixed_ids(),
                                     small_options(), real_clock());
  ASSERT_TRUE(writer.has_value());
  EXPECT_EQ((*writer)->begin(layout_of({{"pc.ram", 64}})).error().code, Errc::no_space);
}

// Of 8 MiB or more.
PageFileWriterOptions options_with_tail() {
  PageFileWriterOptions options = small_options();
  options.tail_bytes_max = std::uint64_t{8} << 20;
  return options;
}

std::unique_ptr<PageFileWriter> writer_after_a_pass(std::unique_ptr<MemoryStorage> file,
                                                    const PageFileWriterOptions& options) {
  auto writer = writer_on(std::move(file), layout_of({{"pc.ram", 4096}}), options);
  PF_CHECK(writer != nullptr);
  writer->begin_pass(1);
  for (std::uint64_t page = 0; page < 100; ++page) PF_CHECK(put(*writer, page, 1).has_value());
  return writer;
}

TEST(PageFileWriterTest, BeforeTheBlackoutAsMuchOfTheTailIsWrittenOverAsWillBeNeeded) {
  MemoryDisk disk;
  const auto writer = writer_on(std::make_unique<MemoryStorage>(disk),
                                layout_of({{"pc.ram", 4096}}), options_with_tail());
  ASSERT_NE(writer, nullptr);
  writer->begin_pass(1);
  ASSERT_TRUE(writer->prepare_blackout(std::uint64_t{3} << 20));
  const std::uint64_t prewritten = writer->stats().tail_prewritten_bytes;
  EXPECT_GE(prewritten, std::uint64_t{3} << 20);
  EXPECT_LT(prewritten, std::uint64_t{4} << 20);
}

TEST(PageFileWriterTest, BeforeTheBlackoutNoMoreThanTheTailIsWrittenOver) {
  MemoryDisk disk;
  const auto writer =
      writer_after_a_pass(std::make_unique<MemoryStorage>(disk), options_with_tail());
  ASSERT_TRUE(writer->prepare_blackout(std::uint64_t{1} << 30));
  EXPECT_EQ(writer->stats().tail_prewritten_bytes, std::uint64_t{8} << 20);
}

TEST(PageFileWriterTest, BeforeTheBlackoutTheWritesOfThePassAreWaitedFor) {
  MemoryDisk disk;
  auto file = std::make_unique<MemoryStorage>(disk);
  const MemoryStorage* storage = file.get();
  const auto writer = writer_after_a_pass(std::move(file), options_with_tail());
  ASSERT_TRUE(writer->prepare_blackout(0));
  EXPECT_EQ(storage->in_flight(), 0U);
}

TEST(PageFileWriterTest, WithABandwidthLimitTheTailIsNotWrittenOverAtOnce) {
  MemoryDisk disk;
  PageFileWriterOptions options = options_with_tail();
  options.bandwidth_limit_bytes_per_s = std::uint64_t{1} << 30;
  const auto writer = writer_after_a_pass(std::make_unique<MemoryStorage>(disk), options);
  const std::uint64_t before = writer->stats().tail_prewritten_bytes;
  ASSERT_TRUE(writer->prepare_blackout(std::uint64_t{3} << 20));
  EXPECT_EQ(writer->stats().tail_prewritten_bytes, before);
}

TEST(PageFileWriterTest, InTheBlackoutItIsTooLateToPrepareIt) {
  MemoryDisk disk;
  const auto writer =
      writer_after_a_pass(std::make_unique<MemoryStorage>(disk), options_with_tail());
  ASSERT_TRUE(writer->begin_blackout());
  EXPECT_EQ(writer->prepare_blackout(0).error().code, Errc::invalid);
}

TEST(PageFileWriterTest, CancelEndsACallThatWaitsForTheStore) {
  MemoryDisk disk;
  auto file = std::make_unique<MemoryStorage>(disk);
  MemoryStorage* storage = file.get();
  PageFileWriterOptions options = small_options();
  options.close_wait = Milliseconds(1);
  const auto writer = writer_on(std::move(file), layout_of({{"pc.ram", 4096}}), options);
  ASSERT_NE(writer, nullptr);
  storage->hold_completions();
  std::jthread canceler([&] {
    while (writer->stats().put_pages < 100) std::this_thread::yield();
    writer->cancel();
  });
  Result<void> result;
  for (std::uint64_t page = 0; page < 4096 && result; ++page) result = put(*writer, page, 1);
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::canceled);
  EXPECT_EQ(writer->finish_and_commit().error().code, Errc::canceled);
  storage->release_completions();
}

}  // namespace
}  // namespace pageferry
