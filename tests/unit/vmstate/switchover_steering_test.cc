// Goal: the threshold stays as small as the guest's writing allows, and never passes the maximum downtime.
// Method: simulated guests: a dirty rate, a working set, a bandwidth; QEMU's rule applied to each pass.
#include "vmstate/switchover_steering.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace pageferry {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;
constexpr SwitchoverSteering::Limits kLimits{
    .target_downtime = Milliseconds(30), .max_downtime = Milliseconds(300), .passes_max = 60};

struct Guest {
  std::uint64_t dirty_per_s;
  std::uint64_t working_set;
  std::uint64_t bandwidth = 1000 * kMiB;
  double sync_s = 0.002;  // a dirty sync lasts so long at least
};

struct Outcome {
  std::uint64_t left = 0;
  unsigned passes = 0;
  bool switched = false;
};

// Passes as QEMU makes them until what is dirty fits under the threshold, or the steering gives up.
Outcome migrate(SwitchoverSteering& steering, const Guest& guest) {
  steering.on_bandwidth(guest.bandwidth);
  steering.start_counting();
  std::uint64_t dirty = 2048 * kMiB;
  for (unsigned pass = 1;; ++pass) {
    const double seconds =
        guest.sync_s + static_cast<double>(dirty) / static_cast<double>(guest.bandwidth);
    const auto written =
        static_cast<std::uint64_t>(static_cast<double>(guest.dirty_per_s) * seconds);
    const std::uint64_t next = std::min(written, guest.working_set);
    if (pass > 1) steering.on_pass(dirty);
    if (next < steering.threshold_bytes()) return {.left = next, .passes = pass, .switched = true};
    if (steering.not_converging()) return {.left = next, .passes = pass, .switched = false};
    dirty = next;
  }
}

TEST(SwitchoverSteeringTest, IdleGuestStopsWithAlmostNothingLeft) {
  SwitchoverSteering steering(kLimits);
  const Outcome outcome = migrate(steering, {.dirty_per_s = kMiB, .working_set = 8 * kMiB});
  EXPECT_TRUE(outcome.switched);
  EXPECT_LT(outcome.left, kMiB / 4);
}

TEST(SwitchoverSteeringTest, ModerateGuestStopsFarBelowTheTarget) {
  SwitchoverSteering steering(kLimits);
  const Outcome outcome = migrate(steering, {.dirty_per_s = 50 * kMiB, .working_set = 256 * kMiB});
  EXPECT_TRUE(outcome.switched);
  EXPECT_LT(outcome.left, kMiB);
  EXPECT_LT(outcome.passes, 10U);
}

TEST(SwitchoverSteeringTest, SlowSyncRaisesTheThresholdOnlyToWhatIsReachable) {
  SwitchoverSteering steering(kLimits);
  const Outcome outcome =
      migrate(steering, {.dirty_per_s = 50 * kMiB, .working_set = 256 * kMiB, .sync_s = 0.2});
  EXPECT_TRUE(outcome.switched);
  EXPECT_LT(outcome.left, 12 * kMiB);
  EXPECT_LT(outcome.passes, 20U);
}

TEST(SwitchoverSteeringTest, BusyGuestUsesMoreThanTheTargetButNotMoreThanTheMaximum) {
  SwitchoverSteering steering(kLimits);
  const Outcome outcome = migrate(steering, {.dirty_per_s = 900 * kMiB, .working_set = 200 * kMiB});
  EXPECT_TRUE(outcome.switched);
  EXPECT_GT(outcome.left, 20 * kMiB);
  EXPECT_LT(outcome.left, 300 * kMiB);
}

TEST(SwitchoverSteeringTest, GuestFasterThanTheWayDoesNotConverge) {
  SwitchoverSteering steering(kLimits);
  const Outcome outcome =
      migrate(steering, {.dirty_per_s = 3000 * kMiB, .working_set = 1024 * kMiB});
  EXPECT_FALSE(outcome.switched);
  EXPECT_GE(outcome.passes, 60U);
}

TEST(SwitchoverSteeringTest, PassesBeforeCountingDoNotUseUpTheLimit) {
  SwitchoverSteering steering(kLimits);
  steering.on_bandwidth(1000 * kMiB);
  for (int i = 0; i < 1000; ++i) steering.on_pass(500 * kMiB);
  EXPECT_FALSE(steering.not_converging());
}

TEST(SwitchoverSteeringTest, ThresholdNeverPassesTheMaximum) {
  SwitchoverSteering steering(kLimits);
  steering.on_bandwidth(1000 * kMiB);
  for (int i = 0; i < 1000; ++i) {
    steering.on_pass(2000 * kMiB);
    ASSERT_LE(steering.threshold_bytes(), 300 * kMiB);
  }
}

TEST(SwitchoverSteeringTest, ThresholdNeverFalls) {
  SwitchoverSteering steering(kLimits);
  steering.on_bandwidth(1000 * kMiB);
  std::uint64_t before = 0;
  for (std::uint64_t i = 0; i < 100; ++i) {
    steering.on_pass((i * 7919 % 50) * kMiB);
    ASSERT_GE(steering.threshold_bytes(), before);
    before = steering.threshold_bytes();
  }
}

TEST(SwitchoverSteeringTest, HasAThresholdBeforeAnythingWasMeasured) {
  EXPECT_GT(SwitchoverSteering(kLimits).threshold_bytes(), 0U);
}

}  // namespace
}  // namespace pageferry
