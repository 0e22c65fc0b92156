// The conditions from the surest to the last resort. A first pass that the limit forbids to be repeated is still made.
#include "pager/convergence_rule.h"

namespace pageferry {

std::string_view name_of(BrownoutEnd end) {
  switch (end) {
    case BrownoutEnd::nothing_left:
      return "nothing-left";
    case BrownoutEnd::catches_up:
      return "catches-up";
    case BrownoutEnd::fits:
      return "fits";
    case BrownoutEnd::pass_limit:
      return "pass-limit";
  }
  return "unknown";
}

Nanoseconds time_to_write(std::uint64_t bytes, std::uint64_t bytes_per_s) {
  if (bytes == 0) return Nanoseconds(0);
  const double limit_ns = static_cast<double>(Nanoseconds::max().count());
  const double needed_ns =
      bytes_per_s == 0 ? limit_ns
                       : static_cast<double>(bytes) * 1e9 / static_cast<double>(bytes_per_s);
  if (needed_ns >= limit_ns) return Nanoseconds::max();
  return Nanoseconds(static_cast<std::int64_t>(needed_ns));
}

std::optional<BrownoutEnd> brownout_end(const ConvergenceLimits& limits, const PassFacts& facts) {
  if (!facts.every_page_stored_once) return std::nullopt;
  if (facts.remaining_bytes == 0) return BrownoutEnd::nothing_left;
  const std::uint64_t gain_per_s = facts.write_bytes_per_s > facts.dirty_bytes_per_s
                                       ? facts.write_bytes_per_s - facts.dirty_bytes_per_s
                                       : 0;
  if (time_to_write(facts.remaining_bytes, gain_per_s) < limits.downtime_max) {
    return BrownoutEnd::catches_up;
  }
  if (time_to_write(facts.remaining_bytes, facts.write_bytes_per_s) < limits.downtime_max) {
    return BrownoutEnd::fits;
  }
  if (facts.passes_done >= limits.passes_max) return BrownoutEnd::pass_limit;
  return std::nullopt;
}

}  // namespace pageferry
