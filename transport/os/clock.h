// Time, as something that is passed in: a Clock tells monotonic time, a Deadline is a point on it.
// Tests pass a ManualClock (tests/fakes); the product passes MonotonicClock.
// Thread rule: Clock implementations are thread-safe; Deadline is a value.
#pragma once

#include <chrono>
#include <ctime>
#include <optional>

namespace pageferry {

using Nanoseconds = std::chrono::nanoseconds;
using Milliseconds = std::chrono::milliseconds;
using Seconds = std::chrono::seconds;

class Clock {
 public:
  virtual ~Clock() = default;
  // Time since an arbitrary start; never goes back. CLOCK_MONOTONIC in the product.
  virtual Nanoseconds now() const = 0;
};

// clock_gettime(2).
inline Nanoseconds read_kernel_clock(clockid_t clock) {
  timespec ts{};
  clock_gettime(clock, &ts);
  return Seconds(ts.tv_sec) + Nanoseconds(ts.tv_nsec);
}

class MonotonicClock final : public Clock {
 public:
  Nanoseconds now() const override { return read_kernel_clock(CLOCK_MONOTONIC); }
};

// The time for which the calling thread had a CPU.
class ThreadCpuClock final : public Clock {
 public:
  Nanoseconds now() const override { return read_kernel_clock(CLOCK_THREAD_CPUTIME_ID); }
};

// A bound on a wait. Deadline::never() waits for ever and is only right where no clock may decide
// (docs/architecture.md, "Points of no return").
class Deadline {
 public:
  static Deadline never() { return Deadline(); }
  static Deadline after(const Clock& clock, Nanoseconds duration) {
    return Deadline(&clock, clock.now() + duration);
  }
  bool passed() const { return clock_ != nullptr && clock_->now() >= at_; }
  // For poll(2): -1 = no bound, else milliseconds left, rounded up, at least 0.
  int poll_timeout_ms() const {
    if (clock_ == nullptr) return -1;
    const auto left = at_ - clock_->now();
    if (left <= Nanoseconds::zero()) return 0;
    const auto ms = std::chrono::ceil<Milliseconds>(left).count();
    return ms > 1'000'000'000 ? 1'000'000'000 : static_cast<int>(ms);
  }

 private:
  Deadline() = default;
  Deadline(const Clock* clock, Nanoseconds at) : clock_(clock), at_(at) {}
  const Clock* clock_ = nullptr;
  Nanoseconds at_{0};
};

}  // namespace pageferry
