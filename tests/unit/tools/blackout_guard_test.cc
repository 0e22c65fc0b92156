// The guard gives up once, when its limit passes, and never after it was disarmed.
#include "tools/pageferry/blackout_guard.h"

#include <gtest/gtest.h>

#include <future>

namespace pageferry {
namespace {

TEST(BlackoutGuard, GivesUpWhenTheLimitPasses) {
  std::promise<void> called;
  BlackoutGuard guard(Milliseconds(1), [&called] {
    called.set_value();
    return true;
  });
  called.get_future().wait();
  EXPECT_TRUE(guard.disarm());
}

TEST(BlackoutGuard, DisarmedInTimeNeverGivesUp) {
  std::atomic<bool> called = false;
  {
    BlackoutGuard guard(Seconds(3600), [&called] { return called = true; });
    EXPECT_FALSE(guard.disarm());
    EXPECT_FALSE(guard.disarm());
  }
  EXPECT_FALSE(called);
}

TEST(BlackoutGuard, GivingUpTooLateIsNotGivingUp) {
  std::promise<void> called;
  BlackoutGuard guard(Milliseconds(1), [&called] {
    called.set_value();
    return false;  // SHUT(0) was sent before
  });
  called.get_future().wait();
  EXPECT_FALSE(guard.disarm());
}

}  // namespace
}  // namespace pageferry
