// The rules one by one, every row of the table of a restarted tool, and then all combinations of
// records, VMM states and knowledge against what must never be permitted.
#include "transport/hand_off_rules.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "fakes/ownership_samples.h"

namespace pageferry {
namespace {

using namespace testing_support;

// Builds snapshots: epochs from 0, each opened by host and VMM.
class Records {
 public:
  Records& owner(char host = 'a', int vmm = 1, int boot = 1) {
    writer_ = sample_writer(host, vmm, boot);
    snapshot_.epochs.emplace_back();
    snapshot_.epochs.back().owner = sample_record(epoch(), OwnerFact{}, writer_);
    return *this;
  }
  Records& with(RecordFact fact) {
    EpochRecords& top = snapshot_.epochs.back();
    OwnershipRecord record = sample_record(epoch(), std::move(fact), writer_);
    switch (record.kind()) {
      case RecordKind::owner:
        break;
      case RecordKind::running:
        top.running = record;
        break;
      case RecordKind::released:
        top.released = record;
        break;
      case RecordKind::resident:
        top.resident = record;
        break;
      case RecordKind::fenced:
        top.fenced = record;
        break;
      case RecordKind::ended:
        top.ended = record;
        break;
    }
    return *this;
  }
  Records& fenced() { return with(FencedFact{writer_.claimant, FencingMeans::operator_word, ""}); }
  operator const OwnershipSnapshot&() const { return snapshot_; }  // NOLINT: reads as a snapshot

 private:
  std::uint32_t epoch() const { return static_cast<std::uint32_t>(snapshot_.epochs.size() - 1); }
  OwnershipSnapshot snapshot_;
  RecordWriter writer_;
};

const HostIdentity kMe = sample_host('a', 1);

VmmView view(VmmState state, int vmm = 1) {
  if (state == VmmState::none) return {state, std::nullopt, std::nullopt};
  return {state, sample_vmm(vmm), std::nullopt};
}

Decision decided(const VmmView& vmm, const OwnershipSnapshot& snapshot,
                 const ToolMemory& memory = {}) {
  return decide(vmm, snapshot, kMe, memory);
}

// The source on "a" with VMM 1, released with an image and its memory.
Records released_source() {
  ReleasedFact fact = releases_image(0);
  fact.state.memory = StoppedVmm{kMe, sample_vmm(1)};
  return Records().owner('a', 1).with(runs()).with(fact);
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

// ---- the table, row by row ----

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

// ---- all combinations ----

bool continues(Action action) {
  return action == Action::claim_and_continue || action == Action::run_and_continue ||
         action == Action::continue_only || action == Action::load_claim_continue ||
         action == Action::boot_claimed;
}

// The top epoch over the released source: who owns it, and every set of its records.
std::vector<Records> all_tops() {
  std::vector<Records> tops = {released_source()};
  const std::vector<std::pair<char, int>> owners = {{'a', 1}, {'a', 2}, {'b', 3}};
  for (const auto& [host, vmm] : owners) {
    for (int boot = 1; boot <= 2; ++boot) {
      for (unsigned set = 0; set < 3U * 3U * 2U * 2U; ++set) {
        Records records = released_source();
        records.owner(host, vmm, boot);
        if (set % 3 == 1) records.with(runs());
        if (set % 3 == 2) records.with(never_ran());
        if (set / 3 % 3 == 1) records.with(releases_nothing());
        if (set / 3 % 3 == 2) records.with(releases_image(1));
        if (set / 9 % 2 == 1) records.fenced();
        if (set / 18 % 2 == 1) records.with(EndedFact{});
        tops.push_back(records);
      }
    }
  }
  return tops;
}

std::vector<ToolMemory> all_memories() {
  std::vector<ToolMemory> memories(4);
  memories[1].completed_image = sample_image(1);
  memories[2].ran_without_continue = Epoch{1};
  memories[3].proof = FencingProof{Epoch{1}, sample_id(3), FencingMeans::fence_agent, ""};
  return memories;
}

template <typename Check>
void for_all_scenes(Check check) {
  std::size_t scenes = 0;
  for (const OwnershipSnapshot& snapshot : all_tops()) {
    for (const VmmState state : {VmmState::none, VmmState::incoming, VmmState::finishing,
                                 VmmState::post_migrate, VmmState::paused, VmmState::running}) {
      for (const int vmm : {1, 2}) {
        for (const bool loaded : {false, true}) {
          for (const ToolMemory& memory : all_memories()) {
            VmmView looked = view(state, vmm);
            if (loaded) looked.loaded = sample_image(0);
            check(looked, snapshot, decided(looked, snapshot, memory));
            ++scenes;
          }
        }
      }
    }
  }
  EXPECT_GT(scenes, 10'000U);
}

TEST(DecideAll, OpenEpochOfAnotherIsNeverRunOrReleased) {
  for_all_scenes([](const VmmView& vmm, const OwnershipSnapshot& snapshot, const Decision& d) {
    if (snapshot.top().is_closed() || vmm_of_highest(snapshot, kMe)) return;
    EXPECT_FALSE(continues(d.action)) << d.reason;
    EXPECT_NE(d.action, Action::release);
    EXPECT_NE(d.action, Action::give_up_unrun);
    static_cast<void>(vmm);
  });
}

TEST(DecideAll, NothingIsContinuedInAnOpenEpochButItsOwnVmm) {
  for_all_scenes([](const VmmView& vmm, const OwnershipSnapshot& snapshot, const Decision& d) {
    if (snapshot.top().is_closed() || !continues(d.action)) return;
    EXPECT_EQ(vmm.state, VmmState::paused);
    EXPECT_EQ(vmm_of_highest(snapshot, kMe), vmm.process);
    EXPECT_FALSE(snapshot.top().is_void());
    EXPECT_EQ(d.epoch, snapshot.highest());
  });
}

TEST(DecideAll, ClosedEpochIsContinuedOnlyInTheNext) {
  for_all_scenes([](const VmmView&, const OwnershipSnapshot& snapshot, const Decision& d) {
    if (!snapshot.top().is_closed() || !continues(d.action)) return;
    EXPECT_EQ(d.epoch, next(snapshot.highest()));
    EXPECT_NE(d.action, Action::continue_only);
    EXPECT_NE(d.action, Action::run_and_continue);
  });
}

TEST(DecideAll, StoppedSourceIsNeverContinuedInItsOwnEpoch) {
  for_all_scenes([](const VmmView& vmm, const OwnershipSnapshot& snapshot, const Decision& d) {
    if (vmm.state != VmmState::post_migrate || snapshot.top().is_closed()) return;
    EXPECT_FALSE(continues(d.action)) << d.reason;
  });
}

TEST(DecideAll, OnlyTheNewestStateIsContinued) {
  for_all_scenes([](const VmmView& vmm, const OwnershipSnapshot& snapshot, const Decision& d) {
    const bool claims = d.action == Action::claim_and_continue;
    if (!claims && d.action != Action::load_claim_continue) return;
    const GuestState newest = image_for(snapshot, next(snapshot.highest()));
    EXPECT_TRUE(newest.exists());
    EXPECT_EQ(d.state, newest);
    if (claims && vmm.state == VmmState::paused) {
      EXPECT_EQ(vmm.loaded, newest.image);
    }
    if (claims && vmm.state == VmmState::post_migrate) {
      EXPECT_EQ(newest.memory->process, *vmm.process);
    }
  });
}

TEST(DecideAll, RunningGuestIsNeverTouched) {
  for_all_scenes([](const VmmView& vmm, const OwnershipSnapshot&, const Decision& d) {
    if (vmm.state != VmmState::running) return;
    EXPECT_TRUE(d.action == Action::nothing || d.action == Action::write_fenced);
  });
}

TEST(DecideAll, EveryDecisionHasAReason) {
  for_all_scenes([](const VmmView&, const OwnershipSnapshot&, const Decision& d) {
    EXPECT_FALSE(d.reason.empty()) << action_name(d.action);
  });
}

// ---- rule 1 ----

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

}  // namespace
}  // namespace pageferry
