// decide(), all combinations of records, VMM states and knowledge against what must never be permitted.
#include "transport/hand_off_rules.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "fakes/ownership_scenes.h"

namespace pageferry {
namespace {

using namespace testing_support;

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

}  // namespace
}  // namespace pageferry
