// The rules one by one: who may begin (1), who may follow (2), and which state is the newest (4).
#include "transport/hand_off_rules.h"

#include <gtest/gtest.h>

#include "fakes/ownership_scenes.h"

namespace pageferry {
namespace {

using namespace testing_support;

TEST(StandingOf, FirstMigrationOpensEpochZero) {
  const auto standing = standing_of(sample_vmm(1), OwnershipSnapshot{}, kMe);
  EXPECT_EQ(standing.kind, Standing::Kind::must_open);
  EXPECT_EQ(standing.epoch, Epoch{0});
}

TEST(StandingOf, OwnerOfTheHighestGoesOn) {
  const auto standing = standing_of(sample_vmm(1), Records().owner().with(runs()), kMe);
  EXPECT_EQ(standing.kind, Standing::Kind::owner);
  EXPECT_EQ(standing.epoch, Epoch{0});
}

TEST(StandingOf, OwnerWhoseToolDiedBeforeRunningWritesIt) {
  const auto standing = standing_of(sample_vmm(1), Records().owner(), kMe);
  EXPECT_EQ(standing.kind, Standing::Kind::must_write_running);
}

TEST(StandingOf, AfreshBootedVmmOpensTheNextEpoch) {
  const Records records = Records().owner().with(runs()).with(EndedFact{});
  const auto standing = standing_of(sample_vmm(2), records, kMe);
  EXPECT_EQ(standing.kind, Standing::Kind::must_open);
  EXPECT_EQ(standing.epoch, Epoch{1});
}

TEST(StandingOf, SomebodyElsesEpochIsRefusedWithItsName) {
  const auto standing = standing_of(sample_vmm(1), Records().owner('b', 4).with(runs()), kMe);
  EXPECT_EQ(standing.kind, Standing::Kind::refused);
  EXPECT_NE(standing.reason.find("host-b"), std::string::npos) << standing.reason;
}

TEST(StandingOf, AnotherVmmOnThisHostIsSomebodyElse) {
  EXPECT_EQ(standing_of(sample_vmm(1), Records().owner('a', 2).with(runs()), kMe).kind,
            Standing::Kind::refused);
}

TEST(StandingOf, OwnPidInAnotherBootIsSomebodyElse) {
  EXPECT_EQ(standing_of(sample_vmm(1), Records().owner('a', 1, 2).with(runs()), kMe).kind,
            Standing::Kind::refused);
}

TEST(StandingOf, GivenUpEpochIsRefused) {
  EXPECT_EQ(standing_of(sample_vmm(1), Records().owner().with(never_ran()), kMe).kind,
            Standing::Kind::refused);
}

TEST(Rule2, FirstEpochNeedsNothing) {
  EXPECT_TRUE(may_claim(OwnershipSnapshot{}, Epoch{0}));
  EXPECT_FALSE(may_claim(OwnershipSnapshot{}, Epoch{1}));
}

TEST(Rule2, OpenEpochMayNotBeFollowed) {
  EXPECT_EQ(claimable_epoch(Records().owner()), std::nullopt);
  EXPECT_EQ(claimable_epoch(Records().owner().with(runs())), std::nullopt);
  EXPECT_EQ(claimable_epoch(Records().owner().with(never_ran())), std::nullopt);
  EXPECT_EQ(claimable_epoch(Records().owner().with(runs()).with(ResidentFact{})), std::nullopt);
}

TEST(Rule2, ReleasedFencedOrEndedMayBeFollowed) {
  EXPECT_EQ(claimable_epoch(Records().owner().with(releases_nothing())), Epoch{1});
  EXPECT_EQ(claimable_epoch(Records().owner().fenced()), Epoch{1});
  EXPECT_EQ(claimable_epoch(Records().owner().with(EndedFact{})), Epoch{1});
  EXPECT_FALSE(may_claim(Records().owner().fenced(), Epoch{2}));
  EXPECT_FALSE(may_claim(Records().owner().fenced(), Epoch{0}));
}

TEST(Rule4, FirstReleaseThatNamesAnImageGivesItWhateverRunningSays) {
  const Records records = Records().owner().with(runs()).with(releases_image(0));
  EXPECT_EQ(image_for(records, Epoch{1}).image, sample_image(0));
}

TEST(Rule4, EpochsThatNeverRanAreWalkedOver) {
  Records records = Records().owner().with(runs()).with(releases_image(0));
  records.owner('b', 2).with(never_ran()).with(releases_nothing());
  records.owner('b', 3).fenced();
  records.owner('b', 4);
  EXPECT_EQ(image_for(records, Epoch{4}).image, sample_image(0));
  EXPECT_EQ(image_for(records, Epoch{3}).image, sample_image(0));
}

TEST(Rule4, RunningWithoutANamingReleaseMakesAllOlderStale) {
  Records records = Records().owner().with(runs()).with(releases_image(0));
  records.owner('b', 2).with(runs()).with(releases_nothing());
  EXPECT_FALSE(image_for(records, Epoch{2}).exists());
  EXPECT_TRUE(image_for(records, Epoch{1}).exists());
}

TEST(Rule4, EndedEpochLeavesNothing) {
  const Records records = Records().owner().with(runs()).with(EndedFact{});
  EXPECT_FALSE(image_for(records, Epoch{1}).exists());
}

TEST(Rule4, NothingBelowTheFirstEpoch) {
  EXPECT_FALSE(image_for(Records().owner(), Epoch{0}).exists());
  EXPECT_FALSE(image_for(OwnershipSnapshot{}, Epoch{0}).exists());
  EXPECT_FALSE(image_for(Records().owner().fenced(), Epoch{1}).exists());
}

TEST(Rule4, MemoryOfAStoppedVmmIsAStateToo) {
  const Records records = Records().owner().with(runs()).with(releases_memory('a', 1));
  const GuestState state = image_for(records, Epoch{1});
  EXPECT_FALSE(state.image);
  EXPECT_EQ(state.memory->process, sample_vmm(1));
}

}  // namespace
}  // namespace pageferry
