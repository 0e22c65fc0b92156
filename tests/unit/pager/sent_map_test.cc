// SentMap: a page leaves the absent state once, and the searches skip exactly what was taken.
#include "pager/sent_map.h"

#include <gtest/gtest.h>

namespace pageferry {
namespace {

TEST(SentMap, StartsWithEveryPageAbsent) {
  const SentMap map(130);
  EXPECT_EQ(map.pages_absent(), 130U);
  EXPECT_EQ(map.state(PageIndex{129}), PageState::absent);
  EXPECT_FALSE(map.all_sent());
}

TEST(SentMap, TakesARunAcrossWords) {
  SentMap map(200);
  map.take({PageIndex{60}, 80});
  EXPECT_EQ(map.state(PageIndex{59}), PageState::absent);
  EXPECT_EQ(map.state(PageIndex{60}), PageState::in_flight);
  EXPECT_EQ(map.state(PageIndex{139}), PageState::in_flight);
  EXPECT_EQ(map.state(PageIndex{140}), PageState::absent);
  EXPECT_EQ(map.pages_absent(), 120U);
}

TEST(SentMap, AbortsWhenAPageIsTakenTwice) {
  SentMap map(10);
  map.take({PageIndex{3}, 2});
  EXPECT_DEATH(map.take({PageIndex{4}, 1}), "broken invariant");
}

TEST(SentMap, AbortsWhenAPageIsSentTwice) {
  SentMap map(10);
  map.take({PageIndex{3}, 1});
  map.mark_sent({PageIndex{3}, 1});
  EXPECT_DEATH(map.mark_sent({PageIndex{3}, 1}), "broken invariant");
}

TEST(SentMap, AbortsOnAPageOutsideTheMap) {
  SentMap map(10);
  EXPECT_DEATH(map.take({PageIndex{9}, 2}), "broken invariant");
}

TEST(SentMap, APageThatWasGivenBackCanBeTakenAgain) {
  SentMap map(10);
  map.take({PageIndex{0}, 10});
  map.give_back({PageIndex{4}, 2});
  EXPECT_EQ(map.next_absent(PageIndex{0}, PageIndex{10}), PageIndex{4});
  map.take({PageIndex{4}, 2});
  EXPECT_EQ(map.pages_absent(), 0U);
}

TEST(SentMap, IsAllSentWhenTheLastPageIs) {
  SentMap map(65);
  map.take({PageIndex{0}, 65});
  map.mark_sent({PageIndex{0}, 64});
  EXPECT_FALSE(map.all_sent());
  map.mark_sent({PageIndex{64}, 1});
  EXPECT_TRUE(map.all_sent());
}

TEST(SentMap, FindsTheNextAbsentPageBehindFullWords) {
  SentMap map(1000);
  map.take({PageIndex{0}, 777});
  EXPECT_EQ(map.next_absent(PageIndex{5}, PageIndex{1000}), PageIndex{777});
  EXPECT_EQ(map.next_absent(PageIndex{5}, PageIndex{777}), std::nullopt);
}

TEST(SentMap, SeesNoAbsentPageBeyondItsEnd) {
  SentMap map(70);
  map.take({PageIndex{0}, 70});
  EXPECT_EQ(map.next_absent(PageIndex{0}, PageIndex{70}), std::nullopt);
}

TEST(SentMap, MeasuresAnAbsentRunUpToTheNextTakenPage) {
  SentMap map(300);
  map.take({PageIndex{200}, 1});
  EXPECT_EQ(map.absent_run(PageIndex{10}, 1000), 190U);
  EXPECT_EQ(map.absent_run(PageIndex{10}, 20), 20U);
  EXPECT_EQ(map.absent_run(PageIndex{200}, 20), 0U);
  EXPECT_EQ(map.absent_run(PageIndex{201}, 1000), 99U);
}

TEST(SentMap, CountsReceivedPagesAsSent) {
  SentMap map(8);
  map.mark_received({PageIndex{0}, 8});
  EXPECT_TRUE(map.all_sent());
}

}  // namespace
}  // namespace pageferry
