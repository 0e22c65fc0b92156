// A page file over a base holds what changed since, and is read as if it held everything.
#include <gtest/gtest.h>

#include "fakes/page_file_chain.h"

namespace pageferry {
namespace {

using namespace testing_support;

constexpr std::uint64_t kPages = PageFileChain::kPages;
constexpr std::uint64_t kStored = 500;  // in the first file; the others are zero
constexpr unsigned kNone = PageFileChain::kNone;

class PageFileBaseTest : public ::testing::Test {
 protected:
  void SetUp() override {
    chain_.write(1, kNone, [](PageFileWriter& sink) {
      put_all(sink, kStored, 1);
      ASSERT_TRUE(sink.begin_blackout());
      ASSERT_TRUE(put(sink, 7, 2));  // in the tail
    });
  }
  // Every seventh page from page 0 on, and one that was zero.
  static void put_some(PageFileWriter& sink, std::uint64_t age) {
    for (std::uint64_t page = 0; page < kStored; page += 7) ASSERT_TRUE(put(sink, page, age));
    ASSERT_TRUE(put(sink, 550, age));
  }
  static std::uint64_t age_of(std::uint64_t page, std::uint64_t changed) {
    if (page == 550 || (page < kStored && page % 7 == 0)) return changed;
    return page < kStored ? 1 : 0;
  }
  void expect_content(unsigned number, std::uint64_t changed) {
    auto reader = chain_.open(number);
    ASSERT_TRUE(reader.has_value()) << reader.error().message;
    for (std::uint64_t page = 0; page < kPages; ++page) {
      const std::uint64_t age = age_of(page, changed);
      ASSERT_EQ((*reader)->is_zero(PageIndex{page}), age == 0) << page;
      ASSERT_TRUE(age == 0 || holds(**reader, page, age)) << page;
    }
  }

  PageFileChain chain_;
};

TEST_F(PageFileBaseTest, PagesThatWereNotPutAreThoseOfTheBase) {
  chain_.write(2, 1, [](PageFileWriter& sink) { put_some(sink, 3); });
  expect_content(2, 3);
}

TEST_F(PageFileBaseTest, AFileWithoutABaseHasVersion1AndOneWithHas2) {
  chain_.write(2, 1, [](PageFileWriter&) {});
  EXPECT_EQ(chain_.load(1).header.format_version(), 1U);
  EXPECT_EQ(chain_.load(2).header.format_version(), 2U);
  EXPECT_EQ(chain_.load(2).record.format_version, 2U);
}

TEST_F(PageFileBaseTest, OnlyWhatWasPutIsWritten) {
  chain_.write(2, 1, [](PageFileWriter& sink) { put_some(sink, 3); });
  constexpr std::uint64_t kPut = kStored / 7 + 2;
  // Head, layout, map twice, checksums, delta.
  constexpr std::uint64_t kBlocksBeside = 16;
  EXPECT_EQ(chain_.stats().home_pages, kPut);
  EXPECT_LE(chain_.stats().bytes_written, (kPut + kBlocksBeside) * kFileBlockBytes);
}

TEST_F(PageFileBaseTest, APageOfTheBaseHasNoVersionAndOneThatWasPutHas) {
  chain_.write(2, 1, [](PageFileWriter& sink) { put_some(sink, 3); });
  auto reader = chain_.open(2);
  ASSERT_TRUE(reader.has_value());
  EXPECT_EQ((*reader)->version(PageIndex{1}), 0U);
  EXPECT_EQ((*reader)->version(PageIndex{0}), 1U);
}

TEST_F(PageFileBaseTest, APageMayBecomeZeroAndComeBack) {
  chain_.write(2, 1, [](PageFileWriter& sink) {
    ASSERT_TRUE(sink.put_zero(PageIndex{1}));
    ASSERT_TRUE(sink.put_zero(PageIndex{2}));
    sink.begin_pass(2);
    ASSERT_TRUE(put(sink, 2, 5));
  });
  auto reader = chain_.open(2);
  ASSERT_TRUE(reader.has_value()) << reader.error().message;
  EXPECT_TRUE((*reader)->is_zero(PageIndex{1}));
  EXPECT_TRUE(holds(**reader, 2, 5));
  EXPECT_TRUE(holds(**reader, 3, 1));
}

TEST_F(PageFileBaseTest, LaterPassesAndTheBlackoutReplaceAPageOfTheBase) {
  chain_.write(2, 1, [](PageFileWriter& sink) {
    ASSERT_TRUE(put(sink, 1, 3));
    sink.begin_pass(2);
    ASSERT_TRUE(put(sink, 1, 4));
    ASSERT_TRUE(put(sink, 2, 4));
    ASSERT_TRUE(sink.begin_blackout());
    ASSERT_TRUE(put(sink, 2, 5));
    ASSERT_TRUE(put(sink, 3, 5));
  });
  auto reader = chain_.open(2);
  ASSERT_TRUE(reader.has_value()) << reader.error().message;
  EXPECT_TRUE(holds(**reader, 1, 4));
  EXPECT_TRUE(holds(**reader, 2, 5));
  EXPECT_TRUE(holds(**reader, 3, 5));
  EXPECT_TRUE(holds(**reader, 4, 1));
  EXPECT_EQ(chain_.stats().rewritten_pages, 1U);
}

TEST_F(PageFileBaseTest, LentPagesReplaceThoseOfTheBase) {
  const std::vector<std::byte> content = contents_of(10, 3, 8);
  const auto lent = AlignedMemory::map(content.size());
  ASSERT_TRUE(lent.has_value());
  std::copy(content.begin(), content.end(), lent->data());
  chain_.write(2, 1, [&](PageFileWriter& sink) {
    ASSERT_TRUE(sink.put_lent_pages({PageIndex{10}, 3}, {lent->data(), content.size()}));
  });
  auto reader = chain_.open(2);
  ASSERT_TRUE(reader.has_value()) << reader.error().message;
  EXPECT_TRUE(holds(**reader, 9, 1));
  EXPECT_TRUE(holds(**reader, 11, 8));
}

TEST_F(PageFileBaseTest, PagesOfABasesBaseAreNamedDirectly) {
  chain_.write(2, 1, [](PageFileWriter& sink) { put_some(sink, 3); });
  chain_.write(3, 2, [](PageFileWriter& sink) { ASSERT_TRUE(put(sink, 550, 4)); });
  EXPECT_EQ(chain_.load(3).header.bases.size(), 2U);
  // Nothing but pages is read of a base: with its map gone, file 3 is still whole.
  const PageFileHeader middle = chain_.load(2).header;
  auto& bytes = chain_.disk(2).live;
  std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(middle.map_offset),
              middle.map_blocks() * kFileBlockBytes, std::byte{0xee});
  auto reader = chain_.open(3);
  ASSERT_TRUE(reader.has_value()) << reader.error().message;
  for (std::uint64_t page = 0; page < kStored; ++page) {
    ASSERT_TRUE(holds(**reader, page, page % 7 == 0 ? 3 : 1)) << page;
  }
  EXPECT_TRUE(holds(**reader, 550, 4));
}

TEST_F(PageFileBaseTest, ABaseOfWhichNothingIsNeededIsNotNamed) {
  chain_.write(2, 1, [](PageFileWriter& sink) { put_all(sink, kStored, 3); });
  chain_.write(3, 2, [](PageFileWriter&) {});
  const PageFileImage image = chain_.load(3);
  ASSERT_EQ(image.header.bases.size(), 1U);
  EXPECT_EQ(image.header.bases[0].file_name(), PageFileChain::name(2));
  chain_.drop(1);
  auto reader = chain_.open(3);
  ASSERT_TRUE(reader.has_value()) << reader.error().message;
  EXPECT_TRUE(holds(**reader, 0, 3));
}

TEST_F(PageFileBaseTest, ABaseWithoutContentLeavesAFileOfVersion1) {
  chain_.write(2, kNone, [](PageFileWriter&) {});
  chain_.write(3, 2, [](PageFileWriter& sink) { ASSERT_TRUE(put(sink, 5, 3)); });
  EXPECT_EQ(chain_.load(3).header.format_version(), 1U);
  auto reader = chain_.open(3);
  ASSERT_TRUE(reader.has_value());
  EXPECT_TRUE(holds(**reader, 5, 3));
}

TEST_F(PageFileBaseTest, ARunLiesInOneFile) {
  chain_.write(2, 1, [](PageFileWriter& sink) { ASSERT_TRUE(put(sink, 20, 3)); });
  auto reader = chain_.open(2);
  ASSERT_TRUE(reader.has_value());
  EXPECT_EQ((*reader)->contiguous_run(PageIndex{15}, 16).pages, 5U);
  const auto ticket = (*reader)->start_read({PageIndex{15}, 5}, ReadClass::prefetch);
  ASSERT_TRUE(ticket.has_value());
  const ReadDone done = next_done(**reader);
  ASSERT_TRUE(done.bytes.has_value()) << done.bytes.error().message;
  const PageArray expected = content_of(19, 1);
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), done.bytes->end() - kPageSizeBytes));
  (*reader)->release(done.ticket);
}

TEST_F(PageFileBaseTest, WhatTheFirstPassLeavesBehindIsNotInTheDelta) {
  // 600 pages are one batch of map blocks: what is left of it is written when the next pass begins.
  chain_.write(2, 1, [](PageFileWriter& sink) {
    put_some(sink, 3);
    sink.begin_pass(2);
    ASSERT_TRUE(sink.begin_blackout());
    ASSERT_TRUE(put(sink, 3, 4));
  });
  EXPECT_EQ(chain_.stats().delta_entries, 1U);
}

TEST_F(PageFileBaseTest, ItsMapIsReadBeforeItIsCommitted) {
  auto writer = chain_.begin(2, 1);
  ASSERT_NE(writer, nullptr);
  PageMapPreload preload;
  MemoryStorage file(chain_.disk(2));
  const auto read = preload.advance(file, PageFileChain::kMapBytesMax, {});
  ASSERT_TRUE(read.has_value()) << read.error().message;
  EXPECT_EQ(preload.sound_blocks(), 3U);
  ASSERT_TRUE(put(*writer, 4, 3));
  ASSERT_TRUE(writer->finish_and_commit());
  auto reader =
      PageFileReader::open(std::make_unique<MemoryStorage>(chain_.disk(2)), small_reader_options(),
                           real_clock(), {}, {.map = std::move(preload)}, chain_.base_opener());
  ASSERT_TRUE(reader.has_value()) << reader.error().message;
  EXPECT_TRUE(holds(**reader, 4, 3));
  EXPECT_TRUE(holds(**reader, 5, 1));
}

TEST_F(PageFileBaseTest, ABadPageOfABaseIsNeverHandedOut) {
  chain_.write(2, 1, [](PageFileWriter&) {});
  const std::uint64_t at = chain_.load(1).map.get(PageIndex{40}).block() * kFileBlockBytes;
  chain_.disk(1).live[at + 17] ^= std::byte{1};
  auto reader = chain_.open(2);
  ASSERT_TRUE(reader.has_value());
  const auto ticket = (*reader)->start_read({PageIndex{40}, 1}, ReadClass::demand);
  ASSERT_TRUE(ticket.has_value());
  const ReadDone done = next_done(**reader);
  ASSERT_FALSE(done.bytes.has_value());
  EXPECT_EQ(done.bytes.error().code, Errc::corrupt);
  EXPECT_NE(
      done.bytes.error().message.find("of an earlier move, file offset " + std::to_string(at)),
      std::string::npos)
      << done.bytes.error().message;
  (*reader)->release(done.ticket);
}

TEST_F(PageFileBaseTest, TheVerifierReadsThePagesInBasesToo) {
  chain_.write(2, 1, [](PageFileWriter& sink) { put_some(sink, 3); });
  VerifyReport report = chain_.verify(2);
  EXPECT_EQ(report.pages_checked, kStored + 1);
  EXPECT_EQ(report.bad_pages, 0U);
  // Page 1 lies in the base; what is there of page 0 is of no use any more.
  const PageFileImage base = chain_.load(1);
  for (const std::uint64_t page : {std::uint64_t{0}, std::uint64_t{1}}) {
    chain_.disk(1).live[base.map.get(PageIndex{page}).block() * kFileBlockBytes] ^= std::byte{1};
  }
  report = chain_.verify(2);
  ASSERT_EQ(report.bad_pages, 1U);
  EXPECT_NE(report.bad[0].find("page 1 "), std::string::npos) << report.bad[0];
  EXPECT_NE(report.bad[0].find(PageFileChain::name(1)), std::string::npos) << report.bad[0];
}

TEST_F(PageFileBaseTest, TheSummaryCountsThePagesOfEachBase) {
  chain_.write(2, 1, [](PageFileWriter& sink) { put_some(sink, 3); });
  chain_.write(3, 2, [](PageFileWriter& sink) { ASSERT_TRUE(put(sink, 1, 4)); });
  const PageFileSummary summary = summarize("x", chain_.load(3));
  EXPECT_EQ(summary.format_version, 2U);
  EXPECT_EQ(summary.base_pages, kStored);
  ASSERT_EQ(summary.bases.size(), 2U);
  EXPECT_EQ(summary.bases[0].file_name, PageFileChain::name(2));
  EXPECT_EQ(summary.bases[0].pages, kStored / 7 + 2);
  EXPECT_EQ(summary.bases[1].pages, kStored - (kStored / 7 + 1) - 1);
}

TEST_F(PageFileBaseTest, ABaseIsTakenBeforeTheFirstPageOnlyAndOnce) {
  const PageFileImage image = chain_.load(1);
  const auto plan = plan_bases(image);
  ASSERT_TRUE(plan.has_value());
  auto writer = chain_.begin(2, 1);
  ASSERT_NE(writer, nullptr);
  EXPECT_EQ(writer->use_base(image, *plan).error().code, Errc::invalid);
  auto late = chain_.begin(3, kNone);
  ASSERT_TRUE(put(*late, 0, 1));
  EXPECT_EQ(late->use_base(image, *plan).error().code, Errc::invalid);
}

TEST_F(PageFileBaseTest, ABaseOfAnotherLayoutIsRefused) {
  const PageFileImage image = chain_.load(1);
  const auto plan = plan_bases(image);
  ASSERT_TRUE(plan.has_value());
  MemoryDisk disk;
  auto writer = writer_on(disk, layout_of({{"pc.ram", kPages}}));
  const Result<void> used = writer->use_base(image, *plan);
  ASSERT_FALSE(used.has_value());
  EXPECT_EQ(used.error().code, Errc::invalid);
}

TEST_F(PageFileBaseTest, AChainOfSixteenFilesAsksForAFullWrite) {
  // Each file holds one page that no later one replaces.
  for (unsigned number = 2; number <= kBasesMax; ++number) {
    chain_.write(number, number - 1,
                 [&](PageFileWriter& sink) { ASSERT_TRUE(put(sink, number, 3)); });
  }
  EXPECT_TRUE(plan_bases(chain_.load(kBasesMax)).has_value());
  chain_.write(kBasesMax + 1, kBasesMax,
               [](PageFileWriter& sink) { ASSERT_TRUE(put(sink, 100, 3)); });
  const auto plan = plan_bases(chain_.load(kBasesMax + 1));
  ASSERT_FALSE(plan.has_value());
  EXPECT_EQ(plan.error().code, Errc::unsupported);
  // The last of the chain still reads.
  auto reader = chain_.open(kBasesMax + 1);
  ASSERT_TRUE(reader.has_value()) << reader.error().message;
  EXPECT_TRUE(holds(**reader, 2, 3));
  EXPECT_TRUE(holds(**reader, 100, 3));
  EXPECT_TRUE(holds(**reader, 101, 1));
}

TEST_F(PageFileBaseTest, FilesOfWhichLittleIsNeededAskForAFullWrite) {
  chain_.write(2, 1, [](PageFileWriter& sink) { put_some(sink, 3); });
  PageFileImage image = chain_.load(2);
  image.header.bases[0].file_bytes = std::uint64_t{1} << 30;
  const auto plan = plan_bases(image);
  ASSERT_FALSE(plan.has_value());
  EXPECT_EQ(plan.error().code, Errc::unsupported);
  EXPECT_NE(plan.error().message.find("501 pages are needed of files that hold"), std::string::npos)
      << plan.error().message;
}

}  // namespace
}  // namespace pageferry
