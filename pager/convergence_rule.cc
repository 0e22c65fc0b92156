// The conditions from the surest to the last resort. A first pass that the limit forbids to be repeated is still made.
#include "pager/convergence_rule.h"

namespace pageferry {
namespace {

// What is written faster than this is not worth a pass: each one has two collections and a sync.
constexpr Nanoseconds kWorthAPass = Milliseconds(3);
// What a pass takes beside writing, and small scattered writes longer than the stream that the rate was measured with.
constexpr Nanoseconds kPassOverhead = Milliseconds(20);
constexpr int kScatteredWritesFactor = 4;

}  // namespace

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

bool another_pass_pays(const PassFacts& facts) {
  const Nanoseconds written_in = time_to_write(facts.remaining_bytes, facts.write_bytes_per_s);
  if (written_in < kWorthAPass || written_in == Nanoseconds::max()) return false;
  if (facts.remaining_bytes > facts.pass_bytes / 2) return false;
  const double pass_s = std::chrono::duration<double>(written_in).count() * kScatteredWritesFactor +
                        std::chrono::duration<double>(kPassOverhead).count();
  const double left = static_cast<double>(facts.dirty_bytes_per_s) * pass_s;
  return left < static_cast<double>(facts.remaining_bytes) / 2;
}

std::optional<BrownoutEnd> brownout_end(const ConvergenceLimits& limits, const PassFacts& facts) {
  if (!facts.every_page_stored_once) return std::nullopt;
  if (facts.remaining_bytes == 0) return BrownoutEnd::nothing_left;
  if (facts.passes_done < limits.passes_max && another_pass_pays(facts)) return std::nullopt;
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
