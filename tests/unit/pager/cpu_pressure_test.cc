// When work that nobody waits for makes way.
#include "pager/cpu_pressure.h"

#include <gtest/gtest.h>

namespace pageferry {
namespace {

using Microseconds = std::chrono::microseconds;

// Turns of 100 us, one after the other, each with a CPU for `on_cpu`; where time is then.
Nanoseconds after_turns(CpuPressure& pressure, int turns, Nanoseconds on_cpu) {
  Nanoseconds now{0};
  for (int i = 0; i < turns; ++i)
    pressure.note(Microseconds(100), on_cpu, now += Microseconds(100));
  return now;
}

TEST(CpuPressureTest, IsNotFeltByWorkThatHasItsCpu) {
  CpuPressure pressure;
  EXPECT_FALSE(pressure.felt(after_turns(pressure, 1000, Microseconds(90))));
}

TEST(CpuPressureTest, IsFeltWhenAQuarterOfTheTimeIsSpentWithoutACpu) {
  CpuPressure pressure;
  EXPECT_TRUE(pressure.felt(after_turns(pressure, 200, Microseconds(70))));
}

TEST(CpuPressureTest, IsNotFeltBeforeThereIsEnoughWorkToTell) {
  CpuPressure pressure;
  EXPECT_FALSE(pressure.felt(after_turns(pressure, 199, Microseconds(70))));
}

TEST(CpuPressureTest, IsFeltAfterOneLongTurnHoweverItWasSpent) {
  CpuPressure pressure;
  pressure.note(Milliseconds(5), Milliseconds(5), Seconds(1));
  EXPECT_TRUE(pressure.felt(Seconds(1)));
}

TEST(CpuPressureTest, IsForgottenAfterHalfASecond) {
  CpuPressure pressure;
  pressure.note(Milliseconds(5), Milliseconds(5), Seconds(1));
  EXPECT_TRUE(pressure.felt(Seconds(1) + Milliseconds(499)));
  EXPECT_FALSE(pressure.felt(Seconds(1) + Milliseconds(500)));
}

}  // namespace
}  // namespace pageferry
