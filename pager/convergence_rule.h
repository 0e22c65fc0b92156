// ConvergenceRule: after each pass over the dirty pages, whether the guest is stopped now or another pass pays.
//
// Nothing is stopped before every page was stored once. Then the first of these that holds ends the brownout, and is named:
//
//   nothing-left   no page is dirty
//   catches-up     remaining / (write rate - dirty rate) < downtime   a live pass would end within the budget as well, and
//                                                                     a stopped guest dirties nothing: there is room to spare
//   fits           remaining / write rate < downtime                  the blackout's pass fits into the budget
//   pass-limit     so many passes have been made                      the budget may not be kept: the caller decides
//
// catches-up implies fits; it is told apart because it says how sure the estimate is. The rule does not measure: rates come from
// the passes that were made. (The same estimate as QEMU's migration_thread: remaining <= bandwidth x downtime-limit.)
//
// The budget is what the guest may be stopped for, not what it should be. So where another pass is sure to be short and to leave less
// than half, it is made first (another_pass_pays()): a long first pass leaves all that was written during it, and a guest that writes
// 20 MiB/s in 8 GiB would stand still for pages which a pass of a tenth of a second brings while it runs.
//
// Pure. Thread rule: none.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "transport/os/clock.h"

namespace pageferry {

enum class BrownoutEnd : std::uint8_t { nothing_left, catches_up, fits, pass_limit };

std::string_view name_of(BrownoutEnd end);

struct ConvergenceLimits {
  Nanoseconds downtime_max{Milliseconds(300)};
  std::uint32_t passes_max = 30;
};

// What is known when a pass has ended and the dirty pages were collected.
struct PassFacts {
  std::uint32_t passes_done = 0;
  bool every_page_stored_once = false;
  std::uint64_t remaining_bytes = 0;    // dirty now
  std::uint64_t pass_bytes = 0;         // what the last pass put
  std::uint64_t write_bytes_per_s = 0;  // measured over the last pass; 0: nothing was written
  std::uint64_t dirty_bytes_per_s = 0;  // remaining_bytes over the duration of the last pass
};

// How long writing `bytes` takes at a rate; Nanoseconds::max() for a rate of 0.
Nanoseconds time_to_write(std::uint64_t bytes, std::uint64_t bytes_per_s);

// Fewer bytes dirty, and a shorter blackout, for little time. False as soon as a pass has not halved what was dirty.
bool another_pass_pays(const PassFacts& facts);

// Why the brownout ends now, or nullopt: another pass.
std::optional<BrownoutEnd> brownout_end(const ConvergenceLimits& limits, const PassFacts& facts);

}  // namespace pageferry
