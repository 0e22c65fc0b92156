// A map that was read while its file was still being written, and the tail that is read ahead: both save reads, and neither
// may ever change what is restored.
#include "pager/page_map_preload.h"

#include <gtest/gtest.h>

#include "fakes/page_file_fixture.h"
#include "pager/page_file_reader.h"

namespace pageferry {
namespace {

using namespace testing_support;

constexpr std::uint64_t kMapPages = 2000;  // eight map blocks
constexpr std::uint64_t kMapBlocks = 8;
constexpr std::uint64_t kMapBytesMax = std::uint64_t{1} << 20;

class PageMapPreloadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    writer_ = writer_on(disk_, layout_of({{"pc.ram", kMapPages}}));
    ASSERT_NE(writer_, nullptr);
    writer_->begin_pass(1);
    store(0, kMapPages, 1);
  }
  void store(std::uint64_t first, std::uint64_t end, std::uint64_t age) {
    for (std::uint64_t page = first; page < end; ++page) ASSERT_TRUE(put(*writer_, page, age));
  }
  PageMapPreload::Progress preload() {
    MemoryStorage file(disk_);
    auto progress = preload_.advance(file, kMapBytesMax, {});
    EXPECT_TRUE(progress) << progress.error().message;
    return *progress;
  }
  std::unique_ptr<PageFileReader> open() {
    auto reader =
        PageFileReader::open(std::make_unique<MemoryStorage>(disk_), small_reader_options(),
                             real_clock(), {}, {.map = std::move(preload_)});
    EXPECT_TRUE(reader) << reader.error().message;
    return reader ? std::move(*reader) : nullptr;
  }

  MemoryDisk disk_;
  std::unique_ptr<PageFileWriter> writer_;
  PageMapPreload preload_;
};

TEST_F(PageMapPreloadTest, NothingIsSoundBeforeTheMapIsWritten) {
  EXPECT_EQ(preload(), PageMapPreload::Progress::all_there_is);
  EXPECT_EQ(preload_.sound_blocks(), 0U);
}

TEST_F(PageMapPreloadTest, WhatAPassLeftOnTheStoreIsReadBeforeTheCommit) {
  writer_->begin_pass(2);
  ASSERT_TRUE(writer_->begin_blackout());
  preload();
  EXPECT_EQ(preload_.sound_blocks(), kMapBlocks);
}

TEST_F(PageMapPreloadTest, WhatChangedAfterThePreloadIsRestoredAsItWasCommitted) {
  writer_->begin_pass(2);
  store(0, 300, 2);
  writer_->begin_pass(3);
  preload();
  store(900, 1100, 3);  // enough to write these blocks anew
  ASSERT_TRUE(writer_->begin_blackout());
  store(1500, 1510, 4);
  ASSERT_TRUE(writer_->put_zero(PageIndex{5}));
  ASSERT_TRUE(writer_->finish_and_commit());
  const auto reader = open();
  ASSERT_NE(reader, nullptr);
  EXPECT_TRUE(holds(*reader, 100, 2));
  EXPECT_TRUE(holds(*reader, 1000, 3));
  EXPECT_TRUE(holds(*reader, 1505, 4));
  EXPECT_TRUE(holds(*reader, 1999, 1));
  EXPECT_TRUE(reader->is_zero(PageIndex{5}));
}

TEST_F(PageMapPreloadTest, BlocksThatWereWrittenAnewAreNamedOnceAndReadAgain) {
  writer_->begin_pass(2);
  ASSERT_TRUE(writer_->prepare_blackout(0));
  preload();
  ASSERT_TRUE(writer_->take_rewritten_map_blocks().empty());
  store(300, 800, 2);  // blocks 1 and 3 in part, 2 as a whole
  ASSERT_TRUE(writer_->prepare_blackout(0));
  const auto rewritten = writer_->take_rewritten_map_blocks();
  EXPECT_EQ(rewritten, (std::vector<MapBlockRun>{{.first = 1, .blocks = 2}}));
  EXPECT_TRUE(writer_->take_rewritten_map_blocks().empty());
  for (const MapBlockRun& run : rewritten) preload_.forget(run);
  EXPECT_EQ(preload_.sound_blocks(), kMapBlocks - 2);
  preload();
  EXPECT_EQ(preload_.sound_blocks(), kMapBlocks);
  ASSERT_TRUE(writer_->finish_and_commit());
  const auto reader = open();
  ASSERT_NE(reader, nullptr);
  EXPECT_TRUE(holds(*reader, 310, 2));
  EXPECT_TRUE(holds(*reader, 790, 2));
  EXPECT_TRUE(holds(*reader, 100, 1));
}

TEST_F(PageMapPreloadTest, BlocksThatThereAreNotAreNotForgotten) {
  preload_.forget({.first = 0, .blocks = 1});
  writer_->begin_pass(2);
  ASSERT_TRUE(writer_->prepare_blackout(0));
  preload();
  preload_.forget({.first = kMapBlocks, .blocks = 1});
  EXPECT_EQ(preload_.sound_blocks(), kMapBlocks);
  preload_.forget({.first = kMapBlocks - 1, .blocks = ~std::uint64_t{0}});
  EXPECT_EQ(preload_.sound_blocks(), kMapBlocks - 1);
}

TEST_F(PageMapPreloadTest, APreloadOfAnotherFileIsNotUsed) {
  MemoryDisk other;
  PageFileIds ids = fixed_ids();
  ids.file_id[0] ^= std::byte{1};
  auto another = PageFileWriter::make(std::make_unique<MemoryStorage>(other), ids, small_options(),
                                      real_clock());
  ASSERT_TRUE(another);
  ASSERT_TRUE((*another)->begin(layout_of({{"pc.ram", kMapPages}})));
  (*another)->begin_pass(1);
  for (std::uint64_t page = 0; page < kMapPages; ++page) ASSERT_TRUE(put(**another, page, 9));
  ASSERT_TRUE((*another)->begin_blackout());
  MemoryStorage file(other);
  ASSERT_TRUE(preload_.advance(file, kMapBytesMax, {}));
  ASSERT_TRUE(writer_->finish_and_commit());
  const auto reader = open();
  ASSERT_NE(reader, nullptr);
  EXPECT_TRUE(holds(*reader, 100, 1));
}

TEST_F(PageMapPreloadTest, AMapLargerThanAllowedIsRefused) {
  MemoryStorage file(disk_);
  const auto progress = preload_.advance(file, kFileBlockBytes, {});
  ASSERT_FALSE(progress);
  EXPECT_EQ(progress.error().code, Errc::invalid);
}

// A guest whose map takes more than one step.
class LongMapPreloadTest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kBlocks = 1200;
  static constexpr std::uint64_t kPages = kBlocks * kMapEntriesPerBlock;

  void store_blocks(std::uint64_t first, std::uint64_t end) {
    for (std::uint64_t page = first * kMapEntriesPerBlock; page < end * kMapEntriesPerBlock;
         ++page) {
      ASSERT_TRUE(writer_->put_zero(PageIndex{page}));
    }
  }
  void preload_all_there_is() {
    MemoryStorage file(disk_);
    for (std::uint64_t step = 0; step <= kBlocks; ++step) {
      const auto progress = preload_.advance(file, kBlocks * kFileBlockBytes, {});
      ASSERT_TRUE(progress) << progress.error().message;
      if (*progress == PageMapPreload::Progress::all_there_is) return;
    }
    FAIL() << "no end";
  }

  MemoryDisk disk_;
  std::unique_ptr<PageFileWriter> writer_ = writer_on(disk_, layout_of({{"pc.ram", kPages}}));
  PageMapPreload preload_;
};

TEST_F(LongMapPreloadTest, ABlockThatIsMissingDoesNotKeepTheOthers) {
  writer_->begin_pass(1);
  store_blocks(0, 10);
  store_blocks(11, kBlocks);
  writer_->begin_pass(2);
  ASSERT_TRUE(writer_->prepare_blackout(0));
  preload_all_there_is();
  EXPECT_EQ(preload_.sound_blocks(), kBlocks - 1);
}

TEST_F(LongMapPreloadTest, BlocksThatBecomeOldAreReadAgainHoweverFarApart) {
  writer_->begin_pass(1);
  store_blocks(0, kBlocks);
  writer_->begin_pass(2);
  ASSERT_TRUE(writer_->prepare_blackout(0));
  preload_all_there_is();
  for (std::uint64_t block = 0; block < kBlocks; block += 100) {
    preload_.forget({.first = block, .blocks = 1});
  }
  MemoryStorage file(disk_);
  ASSERT_TRUE(preload_.advance(file, kBlocks * kFileBlockBytes, {}));
  EXPECT_EQ(preload_.sound_blocks(), kBlocks) << "in one step";
}

// QEMU's count of passes may rise before its first one is through.
TEST_F(LongMapPreloadTest, APassThatBeginsInTheMiddleOfTheFirstLeavesNoGap) {
  writer_->begin_pass(1);
  store_blocks(0, 100);
  writer_->begin_pass(2);
  store_blocks(100, kBlocks);
  const std::uint64_t chunk_blocks = small_options().chunk_bytes / kFileBlockBytes;
  preload_all_there_is();
  EXPECT_GE(preload_.sound_blocks() + chunk_blocks, kBlocks / 256 * 256);
}

// The pages of the tail, put while the guest was stopped.
class TailCacheTest : public PageMapPreloadTest {
 protected:
  void SetUp() override {
    PageMapPreloadTest::SetUp();
    ASSERT_TRUE(writer_->begin_blackout());
    for (const std::uint64_t page : kTail) ASSERT_TRUE(put(*writer_, page, 7));
    ASSERT_TRUE(writer_->finish_and_commit());
  }
  static constexpr std::uint64_t kTail[] = {3, 4, 700, 1999};
};

TEST_F(TailCacheTest, RecentPagesAreThoseOfTheTail) {
  const auto reader = open();
  ASSERT_NE(reader, nullptr);
  const auto recent = reader->recent_pages();
  ASSERT_EQ(recent.size(), 4U);
  EXPECT_EQ(recent[0], PageIndex{3});
  EXPECT_EQ(recent[3], PageIndex{1999});
}

TEST_F(TailCacheTest, PagesOfTheTailAreAnsweredWithoutAReadOfTheirOwn) {
  const auto reader = open();
  ASSERT_NE(reader, nullptr);
  // A prefetch read waits for the tail, and is not refused for ever.
  for (;;) {
    const auto ticket = reader->start_read({PageIndex{3}, 2}, ReadClass::prefetch);
    if (ticket) break;
    ASSERT_EQ(ticket.error().code, Errc::busy);
    EXPECT_TRUE(reader->poll().empty());
  }
  const ReadDone done = next_done(*reader);
  ASSERT_TRUE(done.bytes);
  EXPECT_EQ(done.bytes->size(), bytes_of_pages(2));
  reader->release(done.ticket);
  EXPECT_EQ(reader->stats().reads, 0U);
  EXPECT_EQ(reader->stats().from_tail_cache, 1U);
  for (const std::uint64_t page : kTail) EXPECT_TRUE(holds(*reader, page, 7)) << page;
  EXPECT_EQ(reader->stats().reads, 0U);
}

TEST_F(TailCacheTest, ABadPageInTheTailIsReadAgainAndThenNamed) {
  const std::uint64_t tail_offset = open()->header().tail_offset;
  disk_.live[tail_offset + 2 * kPageSizeBytes + 9] ^= std::byte{1};
  const auto reader = open();
  ASSERT_NE(reader, nullptr);
  EXPECT_TRUE(holds(*reader, 3, 7));
  EXPECT_TRUE(read_page(*reader, 700).empty());
  EXPECT_GE(reader->stats().reads, 1U);
}

}  // namespace
}  // namespace pageferry
