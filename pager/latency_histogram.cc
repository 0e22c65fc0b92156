// Log-linear buckets: values below 16 us have a bucket each; above, every doubling is cut into 16
// equal steps.
#include "pager/latency_histogram.h"

#include <algorithm>
#include <bit>

#include "transport/os/error.h"

namespace pageferry {

std::size_t LatencyHistogram::bucket_of(std::uint64_t us) {
  if (us < kStepsPerDoubling) return static_cast<std::size_t>(us);
  // With 16 steps, 16..31 is doubling 1 (shift 0), 32..63 doubling 2 (shift 1), ...
  const unsigned shift = static_cast<unsigned>(std::bit_width(us)) - 5;
  const std::uint64_t step = (us >> shift) - kStepsPerDoubling;
  const std::uint64_t bucket = (std::uint64_t{shift} + 1) * kStepsPerDoubling + step;
  return static_cast<std::size_t>(std::min<std::uint64_t>(bucket, kBuckets - 1));
}

std::uint64_t LatencyHistogram::upper_edge_us(std::size_t bucket) {
  if (bucket < kStepsPerDoubling) return bucket;
  const std::size_t shift = bucket / kStepsPerDoubling - 1;
  const std::uint64_t step = bucket % kStepsPerDoubling;
  return ((kStepsPerDoubling + step + 1) << shift) - 1;
}

void LatencyHistogram::record(Nanoseconds latency) {
  const auto ns = static_cast<std::uint64_t>(std::max<Nanoseconds::rep>(latency.count(), 0));
  const std::uint64_t us = (ns + 999) / 1000;
  // One writer: plain load and store, no read-modify-write needed.
  std::atomic<std::uint64_t>& bucket = buckets_[bucket_of(us)];
  bucket.store(bucket.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  if (us > max_us()) max_us_.store(us, std::memory_order_relaxed);
  count_.store(count() + 1, std::memory_order_relaxed);
}

std::uint64_t LatencyHistogram::percentile_us(unsigned per_mille) const {
  PF_CHECK(per_mille >= 1 && per_mille <= 1000);
  const std::uint64_t total = count();
  if (total == 0) return 0;
  const std::uint64_t rank = std::max<std::uint64_t>(1, (total * per_mille + 999) / 1000);
  std::uint64_t seen = 0;
  for (std::size_t i = 0; i < kBuckets; ++i) {
    seen += buckets_[i].load(std::memory_order_relaxed);
    if (seen >= rank) return std::min(upper_edge_us(i), max_us());
  }
  return max_us();
}

}  // namespace pageferry
