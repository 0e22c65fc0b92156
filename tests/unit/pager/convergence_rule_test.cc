// When the guest is stopped, and under which name.
#include "pager/convergence_rule.h"

#include <gtest/gtest.h>

namespace pageferry {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

// 1,000 MiB/s written, 50 MiB/s dirtied, 300 ms allowed.
PassFacts facts_with(std::uint64_t remaining_bytes) {
  PassFacts facts;
  facts.passes_done = 2;
  facts.every_page_stored_once = true;
  facts.remaining_bytes = remaining_bytes;
  facts.write_bytes_per_s = 1000 * kMiB;
  facts.dirty_bytes_per_s = 50 * kMiB;
  return facts;
}

TEST(ConvergenceRuleTest, NothingEndsBeforeEveryPageWasStoredOnce) {
  PassFacts facts = facts_with(0);
  facts.every_page_stored_once = false;
  facts.passes_done = 1000;
  EXPECT_FALSE(brownout_end({}, facts).has_value());
}

TEST(ConvergenceRuleTest, WithNothingDirtyThereIsNothingLeft) {
  EXPECT_EQ(brownout_end({}, facts_with(0)), BrownoutEnd::nothing_left);
}

TEST(ConvergenceRuleTest, ARemainderThatALivePassWouldCatchUpWithEndsIt) {
  EXPECT_EQ(brownout_end({}, facts_with(280 * kMiB)), BrownoutEnd::catches_up);
}

TEST(ConvergenceRuleTest, ARemainderThatOnlyAStoppedGuestAllowsFits) {
  EXPECT_EQ(brownout_end({}, facts_with(290 * kMiB)), BrownoutEnd::fits);
}

TEST(ConvergenceRuleTest, ARemainderOfExactlyTheBudgetGoesOn) {
  EXPECT_FALSE(brownout_end({}, facts_with(300 * kMiB)).has_value());
}

TEST(ConvergenceRuleTest, AGuestThatDirtiesFasterThanTheStoreWritesMayStillFit) {
  PassFacts facts = facts_with(200 * kMiB);
  facts.dirty_bytes_per_s = 2000 * kMiB;
  EXPECT_EQ(brownout_end({}, facts), BrownoutEnd::fits);
}

TEST(ConvergenceRuleTest, ThePassLimitEndsWhatDoesNotConverge) {
  PassFacts facts = facts_with(900 * kMiB);
  facts.passes_done = ConvergenceLimits{}.passes_max - 1;
  EXPECT_FALSE(brownout_end({}, facts).has_value());
  facts.passes_done = ConvergenceLimits{}.passes_max;
  EXPECT_EQ(brownout_end({}, facts), BrownoutEnd::pass_limit);
}

TEST(ConvergenceRuleTest, AnUnmeasuredRateFitsNothing) {
  PassFacts facts = facts_with(kMiB);
  facts.write_bytes_per_s = 0;
  EXPECT_FALSE(brownout_end({}, facts).has_value());
}

// A first pass over 8 GiB that left 40 MiB: written in 40 ms, while another pass (180 ms) leaves 9 MiB.
PassFacts after_a_long_pass() {
  PassFacts facts = facts_with(40 * kMiB);
  facts.passes_done = 1;
  facts.pass_bytes = 8192 * kMiB;
  return facts;
}

TEST(ConvergenceRuleTest, AnotherPassIsMadeWhereItShortensTheBlackout) {
  EXPECT_TRUE(another_pass_pays(after_a_long_pass()));
  EXPECT_FALSE(brownout_end({}, after_a_long_pass()).has_value());
}

TEST(ConvergenceRuleTest, APassThatDidNotHalveWhatIsDirtyIsTheLast) {
  PassFacts facts = after_a_long_pass();
  facts.pass_bytes = 79 * kMiB;
  EXPECT_EQ(brownout_end({}, facts), BrownoutEnd::catches_up);
  facts.pass_bytes = 80 * kMiB;
  EXPECT_FALSE(brownout_end({}, facts).has_value());
}

TEST(ConvergenceRuleTest, AGuestThatWouldDirtyAsMuchMeanwhileIsNotWaitedFor) {
  PassFacts facts = after_a_long_pass();
  facts.dirty_bytes_per_s = 112 * kMiB;  // more than 20 MiB in 180 ms
  EXPECT_EQ(brownout_end({}, facts), BrownoutEnd::catches_up);
}

TEST(ConvergenceRuleTest, WhatIsWrittenInTwoMillisecondsIsNotWorthAPass) {
  PassFacts facts = after_a_long_pass();
  facts.remaining_bytes = 2 * kMiB;
  EXPECT_EQ(brownout_end({}, facts), BrownoutEnd::catches_up);
}

TEST(ConvergenceRuleTest, ThePassLimitHoldsForAPassThatPays) {
  PassFacts facts = after_a_long_pass();
  facts.passes_done = ConvergenceLimits{}.passes_max;
  EXPECT_EQ(brownout_end({}, facts), BrownoutEnd::catches_up);
}

TEST(ConvergenceRuleTest, TimesAreBoundedNotWrapped) {
  EXPECT_EQ(time_to_write(kMiB, 0), Nanoseconds::max());
  EXPECT_EQ(time_to_write(~std::uint64_t{0}, 1), Nanoseconds::max());
  EXPECT_EQ(time_to_write(0, 0), Nanoseconds(0));
  EXPECT_EQ(time_to_write(1000 * kMiB, 1000 * kMiB), Seconds(1));
}

TEST(ConvergenceRuleTest, EveryEndHasAName) {
  EXPECT_EQ(name_of(BrownoutEnd::nothing_left), "nothing-left");
  EXPECT_EQ(name_of(BrownoutEnd::catches_up), "catches-up");
  EXPECT_EQ(name_of(BrownoutEnd::fits), "fits");
  EXPECT_EQ(name_of(BrownoutEnd::pass_limit), "pass-limit");
}

}  // namespace
}  // namespace pageferry
