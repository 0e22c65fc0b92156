// PrefetchWindow: slow faults shrink it, quiet lets it grow, both within its bounds.
#include "pager/prefetch_window.h"

#include <gtest/gtest.h>

namespace pageferry {
namespace {

using std::chrono::microseconds;

constexpr std::uint64_t kMax = std::uint64_t{768} << 10;

TEST(PrefetchWindow, StartsAtItsMaximum) {
  PrefetchWindow window(kMax, 0);
  EXPECT_EQ(window.bytes(Seconds(1)), kMax);
}

TEST(PrefetchWindow, AFaultMuchSlowerThanTheBestHalvesIt) {
  PrefetchWindow window(kMax, 0);
  window.note_fault_served(Seconds(1), microseconds(100));
  window.note_fault_served(Seconds(1), microseconds(5000));
  EXPECT_EQ(window.bytes(Seconds(1)), kMax / 2);
}

TEST(PrefetchWindow, FaultsOfUsualLatencyChangeNothing) {
  PrefetchWindow window(kMax, 0);
  window.note_fault_served(Seconds(1), microseconds(100));
  window.note_fault_served(Seconds(1), microseconds(200));
  EXPECT_EQ(window.bytes(Seconds(1)), kMax);
}

TEST(PrefetchWindow, GrowsBackWhileItIsQuiet) {
  PrefetchWindow window(kMax, 0);
  window.note_fault_served(Seconds(1), microseconds(100));
  window.note_fault_served(Seconds(1), microseconds(5000));
  Nanoseconds now = Seconds(1);
  for (int i = 0; i < 100; ++i) window.bytes(now += Milliseconds(1));
  EXPECT_EQ(window.bytes(now), kMax);
}

TEST(PrefetchWindow, NeverFallsBelowItsMinimum) {
  PrefetchWindow window(kMax, 0);
  window.note_fault_served(Seconds(1), microseconds(10));
  for (int halving = 0; halving < 5; ++halving) {
    const Nanoseconds now = Seconds(1) + Milliseconds(2 * halving);
    window.note_fault_served(now, Milliseconds(50));
    EXPECT_GE(window.bytes(now), kPrefetchWindowBytesMin);
  }
}

TEST(PrefetchWindow, WithoutALimitItBlocksNothing) {
  PrefetchWindow window(kMax, 0);
  window.note_started(Seconds(1), kMax);
  EXPECT_EQ(window.blocked_until(Seconds(1)), std::nullopt);
}

TEST(PrefetchWindow, TheBandwidthLimitSpacesStarts) {
  PrefetchWindow window(kMax, 1000);
  window.note_started(Seconds(1), 500);
  window.note_started(Seconds(1), 500);
  EXPECT_EQ(window.blocked_until(Seconds(1)), Seconds(2));
  EXPECT_EQ(window.blocked_until(Seconds(2)), std::nullopt);
}

constexpr std::uint64_t kQuietMax = 4 * kMax;

TEST(PrefetchWindow, GrowsBeyondItsBoundWhileNobodyFaultsAndFallsBackAtAFault) {
  PrefetchWindow window(kMax, 0, kQuietMax);
  Nanoseconds now = Seconds(1);
  window.note_fault_served(now, microseconds(100));
  for (int ms = 0; ms < 5; ++ms) window.bytes(now += Milliseconds(1));
  EXPECT_EQ(window.bytes(now), kMax) << "so soon after a fault";
  for (int ms = 0; ms < 50; ++ms) window.bytes(now += Milliseconds(1));
  EXPECT_EQ(window.bytes(now), kQuietMax);
  window.note_fault(now);
  EXPECT_EQ(window.bytes(now), kMax);
}

// What is in flight is what the first fault waits behind.
TEST(PrefetchWindow, DoesNotGrowBeyondTheUsualWhileReadsAreSlow) {
  PrefetchWindow window(kPrefetchWindowBytesMin, 0, 4 * kPrefetchWindowBytesUsual);
  Nanoseconds now = Seconds(1);
  for (int ms = 0; ms < 50; ++ms) {
    window.note_read(now += Milliseconds(1), Milliseconds(5));
    window.bytes(now);
  }
  EXPECT_EQ(window.bytes(now), kPrefetchWindowBytesUsual);
}

TEST(PrefetchWindow, ShrinksToTheUsualWhenReadsBecomeSlowAndGrowsBackWhenTheyAreQuick) {
  PrefetchWindow window(kPrefetchWindowBytesMin, 0, 4 * kPrefetchWindowBytesUsual);
  Nanoseconds now = Seconds(1);
  for (int ms = 0; ms < 50; ++ms) window.bytes(now += Milliseconds(1));
  ASSERT_EQ(window.bytes(now), 4 * kPrefetchWindowBytesUsual);
  for (int read = 0; read < 50; ++read) window.note_read(now += Milliseconds(1), Milliseconds(5));
  EXPECT_EQ(window.bytes(now), kPrefetchWindowBytesUsual);
  for (int ms = 0; ms < 100; ++ms) {
    window.note_read(now += Milliseconds(1), microseconds(600));
    window.bytes(now);
  }
  EXPECT_EQ(window.bytes(now), 4 * kPrefetchWindowBytesUsual);
}

TEST(PrefetchWindow, WhatIsSlowIsTheCallersToSay) {
  PrefetchWindow window(kMax, 0, 0, microseconds(50));
  window.note_fault_served(Seconds(1), microseconds(100));
  window.note_fault_served(Seconds(1), microseconds(400));
  EXPECT_EQ(window.bytes(Seconds(1)), kMax / 2);
}

// Prefetch is what makes them slow: it must not get used to that.
TEST(PrefetchWindow, ManySlowFaultsStaySlow) {
  PrefetchWindow window(kMax, 0);
  window.note_fault_served(Seconds(1), microseconds(100));
  Nanoseconds now = Seconds(1);
  for (int fault = 0; fault < 200; ++fault) {
    window.note_fault_served(now += microseconds(700), microseconds(700));
  }
  EXPECT_LE(window.bytes(now), kPrefetchWindowBytesMin + (std::uint64_t{64} << 10));
}

}  // namespace
}  // namespace pageferry
