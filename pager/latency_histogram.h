// LatencyHistogram: counts durations in buckets of about 6 % width, from 1 us to over an hour, in a
// fixed 3.7 KiB; answers count, maximum and percentiles. Percentiles are the upper edge of their
// bucket, never better than the truth.
//
// Thread rule: one thread records; any thread reads (a reader may miss the newest values).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "transport/os/clock.h"

namespace pageferry {

class LatencyHistogram {
 public:
  void record(Nanoseconds latency);

  std::uint64_t count() const { return count_.load(std::memory_order_relaxed); }
  std::uint64_t max_us() const { return max_us_.load(std::memory_order_relaxed); }
  // The latency that `per_mille` of 1000 values do not exceed, in microseconds; 0 when nothing was
  // recorded. Precondition: 1 <= per_mille <= 1000.
  std::uint64_t percentile_us(unsigned per_mille) const;

 private:
  static constexpr unsigned kStepsPerDoubling = 16;
  static constexpr unsigned kDoublings = 28;
  static constexpr std::size_t kBuckets = std::size_t{kStepsPerDoubling} * (kDoublings + 1);

  static std::size_t bucket_of(std::uint64_t us);
  static std::uint64_t upper_edge_us(std::size_t bucket);

  std::array<std::atomic<std::uint64_t>, kBuckets> buckets_{};
  std::atomic<std::uint64_t> count_{0};
  std::atomic<std::uint64_t> max_us_{0};
};

}  // namespace pageferry
