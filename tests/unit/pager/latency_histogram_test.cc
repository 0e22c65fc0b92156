// LatencyHistogram: percentiles are never better than the truth, and at most a bucket worse.
#include "pager/latency_histogram.h"

#include <gtest/gtest.h>

namespace pageferry {
namespace {

using std::chrono::microseconds;

TEST(LatencyHistogram, IsZeroWhenEmpty) {
  const LatencyHistogram histogram;
  EXPECT_EQ(histogram.percentile_us(990), 0U);
  EXPECT_EQ(histogram.max_us(), 0U);
}

TEST(LatencyHistogram, PercentilesAreWithinABucketAboveTheTruth) {
  LatencyHistogram histogram;
  for (int us = 1; us <= 10000; ++us) histogram.record(microseconds(us));
  EXPECT_GE(histogram.percentile_us(500), 5000U);
  EXPECT_LE(histogram.percentile_us(500), 5000U * 107 / 100);
  EXPECT_GE(histogram.percentile_us(990), 9900U);
  EXPECT_LE(histogram.percentile_us(990), 10000U);
}

TEST(LatencyHistogram, KeepsTheExactMaximum) {
  LatencyHistogram histogram;
  histogram.record(microseconds(123457));
  histogram.record(microseconds(3));
  EXPECT_EQ(histogram.max_us(), 123457U);
  EXPECT_EQ(histogram.percentile_us(1000), 123457U);
}

TEST(LatencyHistogram, CountsValuesBeyondItsLastBucket) {
  LatencyHistogram histogram;
  histogram.record(std::chrono::hours(100));
  EXPECT_EQ(histogram.count(), 1U);
  EXPECT_GT(histogram.percentile_us(500), 0U);
}

TEST(LatencyHistogram, RoundsUpToWholeMicroseconds) {
  LatencyHistogram histogram;
  histogram.record(Nanoseconds(1001));
  EXPECT_EQ(histogram.percentile_us(500), 2U);
}

}  // namespace
}  // namespace pageferry
