// PageIn with UnprovedPages::set_aside: a page that cannot be proved keeps nobody else from arriving, and is tried again when somebody says so.
// And what it records of first touches.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "fakes/page_in_restore.h"

namespace pageferry {
namespace {

using namespace testing_support;

using testing::ElementsAre;

constexpr PageIndex kBad{300};

struct SettingAside : Restore {
  explicit SettingAside(MemoryLayout memory, Answers answers = Answers::at_once)
      : Restore(std::move(memory), answers) {
    fill();
  }
  PageIn& begin(PrefetchOrder order) {
    PageInOptions options{.order = order};
    options.unproved = UnprovedPages::set_aside;
    options.recording = TouchRecording::on;
    return Restore::begin(options);
  }
  void steps() {
    for (int i = 0; i < 2000; ++i) {
      ASSERT_TRUE(page_in->step());
      clock.advance(Milliseconds(1));
    }
  }
  std::uint64_t times_sent(PageIndex page) const {
    const auto& sent = outlet.sent();
    return static_cast<std::uint64_t>(
        std::count_if(sent.begin(), sent.end(), [&](const auto& one) { return one.page == page; }));
  }
};

TEST(PageInUnproved, AllOthersArrive) {
  SettingAside restore(small_block(1000));
  restore.supply.break_page(kBad);
  PageIn& page_in = restore.begin(PrefetchOrder::linear);
  restore.steps();
  EXPECT_EQ(page_in.pages_left(), 999U);
  EXPECT_FALSE(page_in.failure());
  ASSERT_EQ(page_in.unproved().size(), 1U);
  EXPECT_EQ(page_in.unproved().begin()->second.run, (PageRun{kBad, 1}));
  EXPECT_EQ(restore.times_sent(kBad), 0U);
}

TEST(PageInUnproved, ReadAgainItArrivesOnceItIsWell) {
  SettingAside restore(small_block(1000));
  restore.supply.break_page(kBad);
  PageIn& page_in = restore.begin(PrefetchOrder::linear);
  restore.steps();
  page_in.request({kBad, 1});
  EXPECT_TRUE(page_in.is_wanted(kBad));
  page_in.read_again(kBad);
  restore.steps();
  EXPECT_EQ(page_in.unproved().size(), 1U);
  restore.supply.mend_page(kBad);
  page_in.read_again(kBad);
  restore.steps();
  EXPECT_TRUE(page_in.complete());
  EXPECT_EQ(restore.times_sent(kBad), 1U);
  EXPECT_EQ(page_in.fault_latency().count(), 1U);
  EXPECT_EQ(restore.supply.unreleased(), 0U);
}

TEST(PageInUnproved, SettledInAnotherWayItCountsAndIsNotSent) {
  SettingAside restore(small_block(1000));
  restore.supply.break_page(kBad);
  PageIn& page_in = restore.begin(PrefetchOrder::linear);
  restore.steps();
  page_in.settle_unproved(kBad);
  EXPECT_TRUE(page_in.complete());
  EXPECT_EQ(restore.times_sent(kBad), 0U);
}

TEST(PageInUnproved, ABackingPageIsSetAsideAsAWholeAndTheOthersPass) {
  SettingAside restore(huge_block(3));
  const PageIndex bad{kPagesPerHuge + 200};
  restore.supply.break_page(bad);
  PageIn& page_in = restore.begin(PrefetchOrder::linear);
  restore.steps();
  EXPECT_EQ(page_in.pages_left(), 2 * kPagesPerHuge);
  ASSERT_EQ(page_in.unproved().size(), 1U);
  EXPECT_EQ(page_in.unproved().begin()->second.run,
            (PageRun{PageIndex{kPagesPerHuge}, kPagesPerHuge}));
  EXPECT_EQ(restore.supply.unreleased(), 0U);
  restore.supply.mend_page(bad);
  page_in.read_again(PageIndex{kPagesPerHuge});
  restore.steps();
  EXPECT_TRUE(page_in.complete());
  EXPECT_EQ(page_in.counters().pages_prefetched + page_in.counters().pages_demand,
            3 * kPagesPerHuge);
  EXPECT_EQ(restore.supply.unreleased(), 0U);
}

// Who took a part for the whole would answer the fault on it with zeros.
TEST(PageInUnproved, ABackingPageHasLeftWithItsLastPage) {
  SettingAside restore(huge_block(1), Answers::when_told);
  PageIn& page_in = restore.begin(PrefetchOrder::linear);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(page_in.step());
  restore.supply.finish_one();
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(page_in.step());
  ASSERT_GT(page_in.pages_left(), 0U);
  EXPECT_FALSE(page_in.has_left(PageIndex{0}));
  while (!page_in.complete()) {
    restore.supply.finish_all();
    restore.clock.advance(Milliseconds(1));
    ASSERT_TRUE(page_in.step());
  }
  EXPECT_TRUE(page_in.has_left(PageIndex{0}));
}

TEST(PageInTouches, FaultsAreRecordedWithTheirNeighbourhoodInOrder) {
  SettingAside restore(small_block(1000));
  PageIn& page_in = restore.begin(PrefetchOrder::none);
  page_in.request({PageIndex{500}, 1});
  restore.steps();
  page_in.request({PageIndex{100}, 1});
  page_in.request({PageIndex{500}, 1});
  restore.steps();
  EXPECT_THAT(page_in.touches().runs(),
              ElementsAre(PageRun{PageIndex{496}, 16}, PageRun{PageIndex{96}, 16}));
}

TEST(PageInTouches, WhatOnlyPrefetchBroughtIsNotRecorded) {
  SettingAside restore(small_block(1000));
  PageIn& page_in = restore.begin(PrefetchOrder::linear);
  restore.steps();
  ASSERT_TRUE(page_in.complete());
  EXPECT_TRUE(page_in.touches().empty());
}

}  // namespace
}  // namespace pageferry
