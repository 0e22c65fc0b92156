// PageIn: what is asked for leaves first, everything leaves once, nothing that cannot be proved
// leaves at all.
#include "pager/page_in.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "fakes/page_content.h"
#include "fakes/page_in_restore.h"

namespace pageferry {
namespace {

using namespace testing_support;

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint64_t kHugePages = kHugeBytes / kPageSizeBytes;

TEST(PageIn, PrefetchSendsEveryPageOnce) {
  Restore restore(small_block(1000));
  for (std::uint64_t page = 0; page < 1000; page += 2) restore.store(page);
  restore.begin(PrefetchOrder::hot);
  restore.run_to_end();
  restore.expect_each_page_once_with_its_content();
  EXPECT_EQ(restore.page_in->counters().pages_zero, 500U);
  EXPECT_EQ(restore.page_in->counters().pages_prefetched, 1000U);
}

TEST(PageIn, ADemandedPageLeavesFirstOnTheUrgentChannel) {
  Restore restore(small_block(1000));
  restore.fill().begin(PrefetchOrder::none);
  restore.page_in->request(one(500));
  restore.steps();
  const auto urgent = restore.outlet.pages_on(PageChannel::urgent);
  ASSERT_FALSE(urgent.empty());
  EXPECT_EQ(urgent.front(), 500U);
  EXPECT_EQ(restore.page_in->counters().pages_demand, 1U);
}

TEST(PageIn, TheNeighboursOfADemandedPageRideAlong) {
  Restore restore(small_block(1000));
  restore.fill().begin(PrefetchOrder::none);
  restore.page_in->request(one(500));
  restore.steps();
  auto urgent = restore.outlet.pages_on(PageChannel::urgent);
  std::sort(urgent.begin(), urgent.end());
  EXPECT_EQ(urgent.front(), 496U);
  EXPECT_EQ(urgent.back(), 511U);
  EXPECT_EQ(urgent.size(), 16U);
}

TEST(PageIn, TheGuestWaitsForAShortReadOnly) {
  Restore restore(small_block(1000));
  restore.fill().begin(PrefetchOrder::none);
  restore.page_in->request(one(502));
  restore.steps();
  ASSERT_EQ(restore.supply.started().size(), 3U);
  EXPECT_EQ(restore.supply.started()[0].run, (PageRun{PageIndex{500}, 4}));
  EXPECT_EQ(restore.supply.started()[1].run, (PageRun{PageIndex{504}, 8}));
  EXPECT_EQ(restore.supply.started()[2].run, (PageRun{PageIndex{496}, 4}));
}

TEST(PageIn, ASecondFaultNearbyReadsAWiderNeighbourhood) {
  Restore restore(small_block(1024));
  restore.fill().begin(PrefetchOrder::none);
  restore.page_in->request(one(520));
  restore.steps();
  restore.page_in->request(one(600));
  restore.steps();
  EXPECT_EQ(restore.outlet.pages_on(PageChannel::urgent).size(), 16U + 64U);
}

TEST(PageIn, APageThatWasSentIsNotSentAgain) {
  Restore restore(small_block(100));
  restore.fill().begin(PrefetchOrder::hot);
  restore.run_to_end();
  restore.page_in->request(one(42));
  restore.steps();
  restore.expect_each_page_once_with_its_content();
  EXPECT_EQ(restore.page_in->counters().faults_already_sent, 1U);
  EXPECT_EQ(restore.page_in->counters().faults, 0U);
}

TEST(PageIn, APageAskedForTwiceIsReadAndSentOnce) {
  Restore restore(small_block(100), Answers::when_told);
  restore.fill().begin(PrefetchOrder::none);
  restore.page_in->request(one(42));
  restore.steps();
  const auto reads = restore.supply.started().size();
  restore.page_in->request(one(42));
  restore.steps();
  EXPECT_EQ(restore.supply.started().size(), reads);
  restore.supply.finish_all();
  restore.steps();
  EXPECT_EQ(restore.page_in->counters().faults, 1U);
}

TEST(PageIn, AFaultOnAPageThatPrefetchIsReadingStartsNoSecondRead) {
  Restore restore(small_block(64), Answers::when_told);
  restore.fill().begin(PrefetchOrder::linear);
  restore.steps(1);
  ASSERT_EQ(restore.supply.started().size(), 1U);
  restore.page_in->request(one(30));
  restore.steps(1);
  EXPECT_EQ(restore.supply.started().size(), 1U);
  restore.supply.finish_all();
  restore.steps();
  EXPECT_THAT(restore.outlet.pages_on(PageChannel::urgent), ElementsAre(30));
  restore.expect_each_page_once_with_its_content();
}

TEST(PageIn, AFaultTakesAPageOutOfThePrefetchQueue) {
  Restore restore(small_block(64));
  restore.fill();
  restore.outlet.set_room(PageChannel::background, 3);
  restore.begin(PrefetchOrder::linear);
  restore.steps();
  restore.page_in->request(one(30));
  restore.page_in->request(one(3));
  restore.steps();
  EXPECT_THAT(restore.outlet.pages_on(PageChannel::urgent), ElementsAre(30, 3));
  restore.outlet.set_room(PageChannel::background, RecordingOutlet::kNoLimit);
  restore.run_to_end();
  restore.expect_each_page_once_with_its_content();
}

TEST(PageIn, DemandGoesBeforePrefetchOnASingleChannel) {
  Restore restore(small_block(512));
  restore.fill();
  restore.outlet.set_room(PageChannel::background, 5);
  restore.begin({.order = PrefetchOrder::linear, .channels = ChannelCount::one});
  restore.steps();
  restore.page_in->request(one(400));
  restore.steps();
  restore.outlet.set_room(PageChannel::background, 1);
  restore.steps();
  EXPECT_EQ(restore.outlet.sent().back().page, PageIndex{400});
  restore.outlet.set_room(PageChannel::background, RecordingOutlet::kNoLimit);
  restore.run_to_end();
  restore.expect_each_page_once_with_its_content();
}

TEST(PageIn, DemandReadsAreOfTheirOwnClass) {
  Restore restore(small_block(512), Answers::when_told);
  restore.fill().begin(PrefetchOrder::linear);
  restore.page_in->request(one(400));
  restore.steps(1);
  EXPECT_EQ(restore.supply.started().front().read_class, ReadClass::demand);
  EXPECT_EQ(restore.supply.started().back().read_class, ReadClass::prefetch);
}

std::uint64_t bytes_started(const Restore& restore) {
  std::uint64_t pages = 0;
  for (const auto& read : restore.supply.started()) pages += read.run.pages;
  return bytes_of_pages(pages);
}

TEST(PageIn, PrefetchKeepsNoMoreInFlightThanItsWindow) {
  Restore restore(small_block(4096), Answers::when_told);
  restore.fill().begin(
      {.order = PrefetchOrder::linear, .prefetch_bytes_in_flight_max = std::uint64_t{512} << 10});
  restore.steps();
  EXPECT_EQ(bytes_started(restore), 512U * 1024);
}

TEST(PageIn, PrefetchStopsReadingWhileTheChannelIsFull) {
  Restore restore(small_block(4096));
  restore.fill();
  restore.outlet.set_room(PageChannel::background, 0);
  restore.begin(PrefetchOrder::linear);
  restore.steps(100);
  EXPECT_LE(bytes_started(restore), 2U * 1024 * 1024);
}

// Else the store would rest until they have left.
TEST(PageIn, ReadsThatAreDoneTogetherDoNotStopTheNextOnes) {
  Restore restore(small_block(4096), Answers::when_told);
  restore.fill();
  restore.outlet.set_room(PageChannel::background, 0);
  restore.begin(
      {.order = PrefetchOrder::linear, .prefetch_bytes_in_flight_max = std::uint64_t{768} << 10});
  restore.steps();
  const std::uint64_t one_window = bytes_started(restore);
  restore.supply.finish_all();
  restore.steps();
  EXPECT_EQ(bytes_started(restore), 2 * one_window);
}

TEST(PageIn, LittleIsReadAheadOfTheChannelBeforeTheGuestHasSettled) {
  Restore restore(small_block(4096), Answers::when_told);
  restore.fill();
  restore.outlet.set_room(PageChannel::background, 0);
  restore.begin(
      {.order = PrefetchOrder::linear, .prefetch_bytes_in_flight_max = std::uint64_t{768} << 10});
  restore.page_in->set_pace(PrefetchPace::gentle);
  restore.steps();
  const std::uint64_t one_window = bytes_started(restore);
  ASSERT_GT(one_window, 0U);
  restore.supply.finish_all();
  restore.clock.advance(Milliseconds(10));
  restore.steps();
  EXPECT_EQ(bytes_started(restore), one_window);
}

TEST(PageIn, ABusySupplyLosesNoPage) {
  Restore restore(small_block(300), Answers::when_told);
  restore.fill();
  restore.supply.set_slots(1);
  restore.begin(PrefetchOrder::hot);
  for (std::uint64_t page = 0; page < 300; page += 37) restore.page_in->request(one(page));
  restore.run_to_end();
  restore.expect_each_page_once_with_its_content();
}

TEST(PageIn, TheBandwidthLimitPutsPrefetchOffAndSaysUntilWhen) {
  Restore restore(small_block(4096));
  restore.fill().begin({.order = PrefetchOrder::linear, .prefetch_bandwidth_bytes_per_s = 1 << 20});
  restore.steps();
  const std::size_t started = restore.supply.started().size();
  ASSERT_TRUE(restore.page_in->wake_at());
  EXPECT_EQ(*restore.page_in->wake_at() - restore.clock.now(), Milliseconds(250));
  restore.clock.advance(Milliseconds(250));
  restore.steps();
  EXPECT_EQ(restore.supply.started().size(), started + 1);
}

TEST(PageIn, TheBandwidthLimitDoesNotHoldDemandBack) {
  Restore restore(small_block(4096));
  restore.fill().begin({.order = PrefetchOrder::linear, .prefetch_bandwidth_bytes_per_s = 1 << 20});
  restore.steps();
  restore.page_in->request(one(4000));
  restore.steps();
  EXPECT_EQ(restore.outlet.pages_on(PageChannel::urgent).front(), 4000U);
}

TEST(PageIn, FaultLatencyRunsFromTheRequestToTheHandOver) {
  Restore restore(small_block(100), Answers::when_told);
  restore.fill().begin(PrefetchOrder::none);
  restore.page_in->request(one(42));
  restore.steps();
  restore.clock.advance(Milliseconds(3));
  restore.supply.finish_all();
  restore.steps();
  EXPECT_EQ(restore.page_in->fault_latency().max_us(), 3000U);
}

TEST(PageIn, APageThatCannotBeProvedIsNamedAndNeverSent) {
  Restore restore(small_block(100));
  restore.fill();
  restore.supply.break_page(PageIndex{42});
  restore.begin(PrefetchOrder::linear);
  restore.steps(50);
  ASSERT_TRUE(restore.page_in->failure());
  EXPECT_EQ(restore.page_in->failure()->code, Errc::corrupt);
  EXPECT_THAT(restore.page_in->failure()->message, HasSubstr("block 'ram', offset 0x2a000"));
  const auto sent = restore.outlet.pages_on(PageChannel::background);
  EXPECT_EQ(std::count(sent.begin(), sent.end(), 42U), 0);
  EXPECT_FALSE(restore.page_in->complete());
}

TEST(PageIn, TheNeighboursOfABadPageAreStillServed) {
  Restore restore(small_block(100));
  restore.fill();
  restore.supply.break_page(PageIndex{42});
  restore.begin(PrefetchOrder::none);
  restore.page_in->request(one(41));
  restore.page_in->request(one(90));
  restore.steps(50);
  const auto urgent = restore.outlet.pages_on(PageChannel::urgent);
  EXPECT_EQ(std::count(urgent.begin(), urgent.end(), 41U), 1);
  EXPECT_EQ(std::count(urgent.begin(), urgent.end(), 90U), 1);
  EXPECT_EQ(std::count(urgent.begin(), urgent.end(), 42U), 0);
}

// All 512 pages of a 2 MiB page follow each other, ascending, on one channel.
void expect_whole_backing_pages(const std::vector<std::uint64_t>& pages) {
  ASSERT_EQ(pages.size() % kHugePages, 0U);
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (i % kHugePages == 0) {
      EXPECT_EQ(pages[i] % kHugePages, 0U);
    } else {
      EXPECT_EQ(pages[i], pages[i - 1] + 1);
    }
  }
}

TEST(PageIn, BackingPagesLeaveWholeAndAscending) {
  Restore restore(huge_block(4), Answers::when_told);
  for (std::uint64_t page = 0; page < 4 * kHugePages; ++page) {
    if (page % 5 != 0) restore.store(page);
  }
  restore.begin(PrefetchOrder::hot);
  restore.steps();
  restore.page_in->request({PageIndex{3 * kHugePages}, kHugePages});
  restore.run_to_end();
  expect_whole_backing_pages(restore.outlet.pages_on(PageChannel::urgent));
  expect_whole_backing_pages(restore.outlet.pages_on(PageChannel::background));
  EXPECT_EQ(restore.outlet.pages_on(PageChannel::urgent).front(), 3 * kHugePages);
  restore.expect_each_page_once_with_its_content();
}

TEST(PageIn, BackingPagesStayWholeOnASingleChannel) {
  Restore restore(huge_block(4));
  restore.fill();
  restore.outlet.set_room(PageChannel::background, 100);
  restore.begin({.order = PrefetchOrder::linear, .channels = ChannelCount::one});
  restore.steps();
  restore.page_in->request({PageIndex{3 * kHugePages}, kHugePages});
  restore.steps();
  restore.outlet.set_room(PageChannel::background, RecordingOutlet::kNoLimit);
  restore.run_to_end();
  const auto pages = restore.outlet.pages_on(PageChannel::background);
  expect_whole_backing_pages(pages);
  EXPECT_EQ(pages[kHugePages], 3 * kHugePages);
  restore.expect_each_page_once_with_its_content();
}

TEST(PageIn, ABackingPageThatIsOnItsWayIsNotSentTwice) {
  Restore restore(huge_block(2));
  restore.fill();
  restore.outlet.set_room(PageChannel::background, 10);
  restore.begin(PrefetchOrder::linear);
  restore.steps();
  restore.page_in->request({PageIndex{0}, kHugePages});
  restore.outlet.set_room(PageChannel::background, RecordingOutlet::kNoLimit);
  restore.run_to_end();
  restore.expect_each_page_once_with_its_content();
}

TEST(PageIn, SmallBlocksDoNotBreakIntoABackingPage) {
  Restore restore(layout_of_blocks(
      {RamBlock{.name = "rom", .length_bytes = bytes_of_pages(100)},
       RamBlock{.name = "ram", .length_bytes = kHugeBytes, .backing_page_bytes = kHugeBytes}}));
  restore.fill();
  restore.outlet.set_room(PageChannel::urgent, 7);
  restore.begin(PrefetchOrder::none);
  restore.page_in->request({PageIndex{100}, kHugePages});
  restore.steps();
  restore.page_in->request(one(5));
  restore.outlet.set_room(PageChannel::urgent, RecordingOutlet::kNoLimit);
  restore.steps(200);
  const auto urgent = restore.outlet.pages_on(PageChannel::urgent);
  ASSERT_GT(urgent.size(), kHugePages);
  for (std::uint64_t i = 0; i < kHugePages; ++i) EXPECT_EQ(urgent[i], 100 + i);
  EXPECT_EQ(urgent[kHugePages], 5U);
}

}  // namespace
}  // namespace pageferry
