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
