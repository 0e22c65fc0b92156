// ManualClock: time that passes only when a test says so. Thread rule: one thread.
#pragma once

#include "transport/os/clock.h"

namespace pageferry::testing_support {

class ManualClock final : public Clock {
 public:
  Nanoseconds now() const override { return now_; }
  void advance(Nanoseconds duration) { now_ += duration; }

 private:
  Nanoseconds now_{Seconds(1)};
};

}  // namespace pageferry::testing_support
