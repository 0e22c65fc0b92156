// PrefetchWindow: how many bytes prefetch may have in flight at the storage, and when it may start
// the next read. Measured fault latency steers it: a fault much slower than the best ones halves
// the window, a quiet while lets it grow; when nobody has faulted for a while, beyond the bound that
// holds while somebody does, until the next fault.
//
// Why bytes and why so few: 1 MiB reads queued eight deep push a demand fault's p99 from 0.3 ms to
// 200-500 ms; three reads of 256 KiB keep it at 1.5 times and still reach 88 % of full speed.
//
// In the quiet, what is in flight is what the first fault after it waits behind. A fast store needs 2 MiB to be busy and has them done in
// a millisecond; on a slow one as much would take ten times as long and make nothing faster. So beyond the usual 768 KiB the window grows
// only while the reads themselves are quick.
//
// Thread rule: one thread.
#pragma once

#include <cstdint>
#include <optional>

#include "transport/os/clock.h"

namespace pageferry {

inline constexpr std::uint64_t kPrefetchWindowBytesMin = std::uint64_t{128} << 10;
inline constexpr std::uint64_t kPrefetchWindowBytesUsual = std::uint64_t{768} << 10;

class PrefetchWindow {
 public:
  // bytes_max: at least kPrefetchWindowBytesMin is used. bandwidth 0: no limit. quiet_bytes_max: while nobody faults, where it is more.
  // Beyond kPrefetchWindowBytesUsual: and while reads are quick.
  // latency_slack: a fault that took less than this and three of the best ones is not slow.
  PrefetchWindow(std::uint64_t bytes_max, std::uint64_t bandwidth_bytes_per_s,
                 std::uint64_t quiet_bytes_max = 0,
                 Nanoseconds latency_slack = std::chrono::microseconds(300));

  // Bytes that may be in flight at `now`.
  std::uint64_t bytes(Nanoseconds now);
  // The bandwidth limit allows no read before then; nullopt: now is fine.
  std::optional<Nanoseconds> blocked_until(Nanoseconds now) const;

  void note_started(Nanoseconds now, std::uint64_t bytes);
  // A read of prefetch was done at `now`, `took` after it was started.
  void note_read(Nanoseconds now, Nanoseconds took);
  // Nobody has faulted for a while.
  bool is_quiet(Nanoseconds now) const;
  // Somebody waits for a page from now on.
  void note_fault(Nanoseconds now);
  void note_fault_served(Nanoseconds now, Nanoseconds latency);

 private:
  std::uint64_t bytes_max_of_slow_reads() const;
  std::uint64_t bytes_max_now(Nanoseconds now) const;

  std::uint64_t bytes_max_;
  std::uint64_t quiet_bytes_max_;
  std::uint64_t bandwidth_;
  Nanoseconds latency_slack_;
  std::uint64_t bytes_;
  Nanoseconds best_latency_{0};  // forgets slowly; 0 = no fault yet
  Nanoseconds changed_at_{0};
  Nanoseconds fault_at_{0};                  // the last one
  std::optional<Nanoseconds> slow_read_at_;  // the last one
  Nanoseconds next_start_{0};
};

}  // namespace pageferry
