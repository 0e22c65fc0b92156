// decide(), every row of the table of a restarted tool.
#include "transport/hand_off_rules.h"

#include <gtest/gtest.h>

#include "fakes/ownership_scenes.h"

namespace pageferry {
namespace {

using namespace testing_support;

TEST(DecideTable, NoRecordsLeaveEveryVmmAlone) {
  for (const VmmState state : {VmmState::none, VmmState::incoming, VmmState::finishing,
                               VmmState::post_migrate, VmmState::paused, VmmState::running}) {
    EXPECT_EQ(decided(view(state), OwnershipSnapshot{}).action, Action::nothing);
  }
}

TEST(DecideTable, RunningGuestIsLeftAlone) {
  EXPECT_EQ(decided(view(VmmState::running), Records().owner().with(runs())).action,
            Action::nothing);
}

TEST(DecideTable, FinishMigrateIsWaitedOut) {
  EXPECT_EQ(decided(view(VmmState::finishing), Records().owner().with(runs())).action,
            Action::wait);
}

TEST(DecideTable, InmigrateIsWaitedOut) {
  EXPECT_EQ(decided(view(VmmState::incoming), Records().owner()).action, Action::wait);
}

TEST(DecideTable, PostMigrateOfOursReleasesOnlyItsMemoryAfterARestart) {
  const auto decision = decided(view(VmmState::post_migrate), Records().owner().with(runs()));
  EXPECT_EQ(decision.action, Action::release);
  EXPECT_EQ(decision.epoch, Epoch{0});
  EXPECT_FALSE(decision.state.image);
  ASSERT_TRUE(decision.state.memory);
  EXPECT_EQ(decision.state.memory->process, sample_vmm(1));
  EXPECT_EQ(decision.state.memory->host, kMe);
}

TEST(DecideTable, PostMigrateOfOursNamesTheImageThatThisLifeCompleted) {
  ToolMemory memory;
  memory.completed_image = sample_image(0);
  memory.disks = {{"/disk", 5, 6}};
  const auto decision =
      decided(view(VmmState::post_migrate), Records().owner().with(runs()), memory);
  EXPECT_EQ(decision.action, Action::release);
  EXPECT_EQ(decision.state.image, sample_image(0));
  EXPECT_TRUE(decision.state.memory);
  EXPECT_EQ(decision.state.disks, memory.disks);
}

TEST(DecideTable, PostMigrateThatClaimedAndNeverRanReleasesTheSameState) {
  Records records = released_source();
  records.owner('a', 1);
  const auto decision = decided(view(VmmState::post_migrate), records);
  EXPECT_EQ(decision.action, Action::release);
  EXPECT_EQ(decision.epoch, Epoch{1});
  EXPECT_EQ(decision.state, image_for(records, Epoch{1}));
}

TEST(DecideTable, PostMigrateThatHoldsTheReleasedStateCompetes) {
  const auto decision = decided(view(VmmState::post_migrate), released_source());
  EXPECT_EQ(decision.action, Action::claim_and_continue);
  EXPECT_EQ(decision.epoch, Epoch{1});
}

TEST(DecideTable, PostMigrateWithAnOlderStateIsEnded) {
  Records records = released_source();
  records.owner('b', 2).with(runs()).with(releases_image(1));
  EXPECT_EQ(decided(view(VmmState::post_migrate), records).action, Action::end_vmm);
}

TEST(DecideTable, PostMigrateIsEndedWhenTheStateIsLost) {
  Records records = released_source();
  records.owner('b', 2).with(runs()).fenced();
  EXPECT_EQ(decided(view(VmmState::post_migrate), records).action, Action::end_vmm);
}

TEST(DecideTable, PostMigrateIsEndedOnceAnotherRuns) {
  Records records = released_source();
  records.owner('b', 2).with(runs());
  EXPECT_EQ(decided(view(VmmState::post_migrate), records).action, Action::end_vmm);
}

TEST(DecideTable, PostMigrateIsKeptWhileAnotherHasOnlyClaimed) {
  Records records = released_source();
  records.owner('b', 2);
  EXPECT_EQ(decided(view(VmmState::post_migrate), records).action, Action::keep_and_wait);
  records.with(never_ran());
  EXPECT_EQ(decided(view(VmmState::post_migrate), records).action, Action::keep_and_wait);
}

// A move from one QEMU to another on one host: the owner is this host, but not this VMM.
TEST(DecideTable, PostMigrateBesideTheNewVmmOnOneHostIsNotTheOwner) {
  Records records = released_source();
  records.owner('a', 2);
  EXPECT_EQ(decided(view(VmmState::post_migrate, 1), records).action, Action::keep_and_wait);
  records.with(runs());
  EXPECT_EQ(decided(view(VmmState::post_migrate, 1), records).action, Action::end_vmm);
}

TEST(DecideTable, PausedUnderItsOwnRunningIsOnlyContinued) {
  Records records = released_source();
  records.owner('a', 2).with(runs());
  const auto decision = decided(view(VmmState::paused, 2), records);
  EXPECT_EQ(decision.action, Action::continue_only);
  EXPECT_EQ(decision.epoch, Epoch{1});
}

TEST(DecideTable, PausedOwnerWithoutRunningWritesItFirst) {
  Records records = released_source();
  records.owner('a', 2);
  EXPECT_EQ(decided(view(VmmState::paused, 2), records).action, Action::run_and_continue);
}

TEST(DecideTable, PausedWhoseEpochWasGivenUpIsEnded) {
  Records records = released_source();
  records.owner('a', 2).with(never_ran());
  EXPECT_EQ(decided(view(VmmState::paused, 2), records).action, Action::end_vmm);
}

TEST(DecideTable, PausedThatWasLoadedFromTheNewestStateCompetes) {
  VmmView vmm = view(VmmState::paused, 2);
  vmm.loaded = sample_image(0);
  const auto decision = decided(vmm, released_source());
  EXPECT_EQ(decision.action, Action::claim_and_continue);
  EXPECT_EQ(decision.epoch, Epoch{1});
}

TEST(DecideTable, PausedOfUnknownOriginIsEnded) {
  EXPECT_EQ(decided(view(VmmState::paused, 2), released_source()).action, Action::end_vmm);
}

TEST(DecideTable, PausedWithAnOlderImageIsEnded) {
  VmmView vmm = view(VmmState::paused, 3);
  vmm.loaded = sample_image(0);
  Records records = released_source();
  records.owner('b', 2).with(runs()).with(releases_image(1));
  EXPECT_EQ(decided(vmm, records).action, Action::end_vmm);
}

TEST(DecideTable, PausedBesideAnotherOwnerIsEnded) {
  VmmView vmm = view(VmmState::paused, 3);
  vmm.loaded = sample_image(0);
  Records records = released_source();
  records.owner('b', 2);
  EXPECT_EQ(decided(vmm, records).action, Action::end_vmm);
}

TEST(DecideTable, DeadOwnerThatNeverRanGivesUpWithTheSameState) {
  Records records = released_source();
  records.owner('a', 2);
  const auto decision = decided(view(VmmState::none), records);
  EXPECT_EQ(decision.action, Action::give_up_unrun);
  EXPECT_EQ(decision.epoch, Epoch{1});
  EXPECT_EQ(decision.state.image, sample_image(0));
}

TEST(DecideTable, DeadOwnerThatGaveUpReleasesTheSameState) {
  Records records = released_source();
  records.owner('a', 2).with(never_ran());
  const auto decision = decided(view(VmmState::none), records);
  EXPECT_EQ(decision.action, Action::release);
  EXPECT_EQ(decision.state.image, sample_image(0));
}

TEST(DecideTable, DeadOwnerThatRanReleasesNothing) {
  Records records = released_source();
  records.owner('a', 2).with(runs());
  const auto decision = decided(view(VmmState::none), records);
  EXPECT_EQ(decision.action, Action::release);
  EXPECT_FALSE(decision.state.exists());
}

TEST(DecideTable, DeadSourceIsSavedByTheLifeThatCompletedItsImage) {
  ToolMemory memory;
  memory.completed_image = sample_image(0);
  const auto decision = decided(view(VmmState::none), Records().owner().with(runs()), memory);
  EXPECT_EQ(decision.action, Action::release);
  EXPECT_EQ(decision.state.image, sample_image(0));
  EXPECT_FALSE(decision.state.memory);
}

TEST(DecideTable, OnlyTheLifeThatNeverContinuedReleasesTheOldImage) {
  Records records = released_source();
  records.owner('a', 2).with(runs());
  ToolMemory memory;
  memory.ran_without_continue = Epoch{1};
  EXPECT_EQ(decided(view(VmmState::none), records, memory).state.image, sample_image(0));
  memory.ran_without_continue = Epoch{0};
  EXPECT_FALSE(decided(view(VmmState::none), records, memory).state.exists());
}

TEST(DecideTable, FreeImageIsLoaded) {
  const auto decision = decided(view(VmmState::none), released_source());
  EXPECT_EQ(decision.action, Action::load_claim_continue);
  EXPECT_EQ(decision.epoch, Epoch{1});
  EXPECT_EQ(decision.state.image, sample_image(0));
}

TEST(DecideTable, FreeWithoutImageIsARebootInAnEpochOfItsOwn) {
  const auto decision =
      decided(view(VmmState::none), Records().owner().with(runs()).with(releases_nothing()));
  EXPECT_EQ(decision.action, Action::boot_claimed);
  EXPECT_EQ(decision.epoch, Epoch{1});
}

TEST(DecideTable, RebootThatGivesUpAStoppedVmmSaysSo) {
  const auto decision = decided(view(VmmState::none),
                                Records().owner('b', 4).with(runs()).with(releases_memory('b', 4)));
  EXPECT_EQ(decision.action, Action::boot_claimed);
  EXPECT_NE(decision.reason.find("host-b"), std::string::npos) << decision.reason;
}

TEST(DecideTable, EpochOfAnotherHostWaitsForAProof) {
  const Records records = Records().owner('b', 4).with(runs());
  EXPECT_EQ(decided(view(VmmState::none), records).action, Action::wait);
}

TEST(DecideTable, ProofForThisOwnerIsWritten) {
  ToolMemory memory;
  memory.proof = FencingProof{Epoch{0}, sample_id(4), FencingMeans::fence_agent, "ipmi"};
  const auto decision = decided(view(VmmState::none), Records().owner('b', 4).with(runs()), memory);
  EXPECT_EQ(decision.action, Action::write_fenced);
  EXPECT_EQ(decision.epoch, Epoch{0});
  EXPECT_EQ(decision.fenced, (FencedFact{sample_id(4), FencingMeans::fence_agent, "ipmi"}));
}

TEST(DecideTable, ProofForAnEarlierEpochOfTheSameHostIsWorthNothing) {
  ToolMemory memory;
  memory.proof = FencingProof{Epoch{0}, sample_id(4), FencingMeans::fence_agent, ""};
  Records records = Records().owner('b', 4).with(runs()).fenced();
  records.owner('b', 4, 2).with(runs());
  EXPECT_EQ(decided(view(VmmState::none), records, memory).action, Action::wait);
}

TEST(DecideTable, ProofForAnotherClaimantIsWorthNothing) {
  ToolMemory memory;
  memory.proof = FencingProof{Epoch{0}, sample_id(5), FencingMeans::fence_agent, ""};
  EXPECT_EQ(decided(view(VmmState::none), Records().owner('b', 4).with(runs()), memory).action,
            Action::wait);
}

TEST(DecideTable, OwnEpochOfAnEarlierBootIsFencedByTheReboot) {
  const auto decision = decide(view(VmmState::none), Records().owner('a', 1, 1).with(runs()),
                               sample_host('a', 2), {});
  EXPECT_EQ(decision.action, Action::write_fenced);
  ASSERT_TRUE(decision.fenced);
  EXPECT_EQ(decision.fenced->means, FencingMeans::reboot);
}

TEST(DecideTable, ClosedEpochNeedsNoFence) {
  ToolMemory memory;
  memory.proof = FencingProof{Epoch{0}, sample_id(1), FencingMeans::fence_agent, ""};
  EXPECT_EQ(decided(view(VmmState::none), released_source(), memory).action,
            Action::load_claim_continue);
}

TEST(DecideTable, EndedGuestIsNotRevived) {
  const Records records = Records().owner().with(runs()).with(EndedFact{});
  EXPECT_EQ(decided(view(VmmState::none), records).action, Action::nothing);
  EXPECT_EQ(decided(view(VmmState::paused), records).action, Action::end_vmm);
  EXPECT_EQ(decided(view(VmmState::post_migrate), records).action, Action::end_vmm);
}

}  // namespace
}  // namespace pageferry
