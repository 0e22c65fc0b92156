// What tests of many folders say alike: the clock that runs by itself, a step that must succeed, and how long one may wait for what will come.
#pragma once

#include <gtest/gtest.h>

#include "transport/os/clock.h"
#include "transport/os/error.h"

namespace pageferry::testing_support {

// A fatal failure, which ends the caller only if it asks HasFatalFailure().
inline void expect_ok(const Result<void>& result) {
  ASSERT_TRUE(result) << result.error().message;
}

inline const Clock& real_clock() {
  static const MonotonicClock clock;
  return clock;
}

// Far longer than anything here takes: a test that reaches it has failed.
inline Deadline soon() {
  return Deadline::after(real_clock(), Seconds(10));
}

}  // namespace pageferry::testing_support
