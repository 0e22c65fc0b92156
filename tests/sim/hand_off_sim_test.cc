// The product's hand-off rules in a small world, every interleaving of one fault and long random runs with three: never
// two executing VMMs, never an old state, never a good state given up, never stuck. And each of the thirteen known ways to
// break a rule must be seen, or these tests would be blind.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "sim/hand_off_world.h"

namespace pageferry {
namespace {

using namespace testing_support;

struct Finding {
  Violation violation = Violation::none;
  std::vector<std::string> trail;
};

std::string text_of(const Finding& finding) {
  std::string text = fmt::format("violation S{}:\n", static_cast<int>(finding.violation));
  for (const std::string& step : finding.trail) text += "  " + step + "\n";
  return text;
}

struct Search {
  std::size_t states = 0;
  bool complete = true;
  Finding finding;  // the first, by the shortest way to it
};

// Breadth first over all steps from `start`; stops at the first violation, or at `states_max`.
Search explore(const HandOffWorld& start, Mutation mutation, std::size_t states_max) {
  struct Origin {
    std::uint32_t parent;
    std::string what;
  };
  std::unordered_map<std::string, std::uint32_t> seen;
  std::vector<Origin> origins;
  std::deque<std::pair<HandOffWorld, std::uint32_t>> open;
  Search search;
  const auto add = [&](const HandOffWorld& world, std::uint32_t parent, std::string what) {
    const auto number = static_cast<std::uint32_t>(origins.size());
    if (!seen.emplace(world.bytes(), number).second) return;
    origins.push_back({parent, std::move(what)});
    open.emplace_back(world, number);
  };
  const auto found = [&](Violation violation, std::uint32_t at) {
    search.finding.violation = violation;
    for (; at != 0; at = origins[at].parent) {
      search.finding.trail.insert(search.finding.trail.begin(), origins[at].what);
    }
  };
  add(start, 0, "start");
  while (!open.empty()) {
    const auto [world, number] = open.front();
    open.pop_front();
    ++search.states;
    if (world.violation != Violation::none) {
      found(world.violation, number);
      return search;
    }
    if (search.states >= states_max) {
      search.complete = false;
      return search;
    }
    const auto moves = moves_of(world, mutation);
    if (moves.empty() && is_stuck(world)) {
      found(Violation::s3, number);
      return search;
    }
    for (const WorldStep& step : moves) add(step.after, number, step.what);
    for (const WorldStep& step : faults_of(world, mutation)) add(step.after, number, step.what);
  }
  return search;
}

Finding wander(const HandOffWorld& start, Mutation mutation, unsigned seed, int steps_max) {
  std::mt19937 random(seed);
  Finding finding;
  HandOffWorld world = start;
  for (int i = 0; i < steps_max; ++i) {
    auto steps = moves_of(world, mutation);
    const bool quiet = steps.empty();
    if (quiet && is_stuck(world)) {
      finding.violation = Violation::s3;
      return finding;
    }
    // Faults are rare, so that runs get somewhere between them.
    if (quiet || random() % 8 == 0) {
      for (WorldStep& fault : faults_of(world, mutation)) steps.push_back(std::move(fault));
    }
    if (steps.empty()) return finding;
    WorldStep& chosen = steps[random() % steps.size()];
    finding.trail.push_back(chosen.what);
    world = chosen.after;
    if (world.violation != Violation::none) {
      finding.violation = world.violation;
      return finding;
    }
  }
  return finding;
}

constexpr std::size_t kNoLimit = 50'000'000;

TEST(HandOffSim, RulesHoldWithoutFaults) {
  const auto search = explore(first_world({0, 2, Mutation::none}), Mutation::none, kNoLimit);
  EXPECT_EQ(search.finding.violation, Violation::none) << text_of(search.finding);
  EXPECT_TRUE(search.complete);
  EXPECT_GT(search.states, 10'000U);
  RecordProperty("states", std::to_string(search.states));
}

TEST(HandOffSim, RulesHoldWithOneFault) {
  const auto search = explore(first_world({1, 1, Mutation::none}), Mutation::none, kNoLimit);
  EXPECT_EQ(search.finding.violation, Violation::none) << text_of(search.finding);
  EXPECT_TRUE(search.complete);
  EXPECT_GT(search.states, 500'000U);
  RecordProperty("states", std::to_string(search.states));
}

TEST(HandOffSim, RulesHoldOverLongRandomRunsWithThreeFaults) {
  for (unsigned seed = 1; seed <= 3000; ++seed) {
    const auto start = seed % 2 == 0 ? first_world({3, 3, Mutation::none})
                                     : taken_back_world({3, 2, Mutation::none});
    const auto finding = wander(start, Mutation::none, seed, 300);
    ASSERT_EQ(finding.violation, Violation::none) << "seed " << seed << "\n" << text_of(finding);
  }
}

struct Expected {
  Mutation mutation;
  const char* name;
};

class HandOffMutation : public ::testing::TestWithParam<Expected> {};

TEST_P(HandOffMutation, IsSeen) {
  const Mutation mutation = GetParam().mutation;
  // Some need a guest that was taken back once already.
  const auto fresh = explore(first_world({1, 1, mutation}), mutation, 150'000);
  if (fresh.finding.violation != Violation::none) {
    RecordProperty("states", std::to_string(fresh.states));
    return;
  }
  const auto taken_back = explore(taken_back_world({1, 1, mutation}), mutation, 150'000);
  EXPECT_NE(taken_back.finding.violation, Violation::none)
      << "not seen in " << fresh.states << " + " << taken_back.states << " states";
}

INSTANTIATE_TEST_SUITE_P(
    All, HandOffMutation,
    ::testing::Values(Expected{Mutation::released_before_shut, "M01ReleasedBeforeShut"},
                      Expected{Mutation::postmigrate_continued, "M02PostmigrateContinued"},
                      Expected{Mutation::take_back_continued, "M03TakeBackContinued"},
                      Expected{Mutation::given_up_alive, "M04GivenUpAlive"},
                      Expected{Mutation::restored_in_open_epoch, "M05RestoredInOpenEpoch"},
                      Expected{Mutation::owner_without_boot, "M06OwnerWithoutBoot"},
                      Expected{Mutation::proof_used_later, "M07ProofUsedLater"},
                      Expected{Mutation::running_read_first, "M08RunningReadFirst"},
                      Expected{Mutation::two_tools_on_a_host, "M09TwoToolsOnAHost"},
                      Expected{Mutation::cont_takes_effect_later, "M10ContTakesEffectLater"},
                      Expected{Mutation::unnamed_image_released, "M11UnnamedImageReleased"},
                      Expected{Mutation::paused_released_again, "M12PausedReleasedAgain"},
                      Expected{Mutation::running_hides_release, "M13RunningHidesRelease"}),
    [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace pageferry
