// PageOut: brings the memory of a running guest into a PageSink, pass by pass, until ConvergenceRule says that the guest may be
// stopped, and then the rest.
//
//   run_brownout()    collect -> pass 1 (every page) -> collect -> pass 2 (what was written meanwhile) -> ... -> why it ended
//   the caller        pauses the vCPUs and drains the devices (dirty_source.h, D1)
//   run_blackout()    collect a piece -> put what was written to it -> the next piece ..., into the sink's tail
//
// Pages go in ascending order. A pass reads only pages that were collected before it began: tracking is armed first, so a page
// that changes while or after it is read is in the next collection. When a pass fails, all of its pages are dirty again, also
// those that the sink had taken: a sink that failed keeps nothing.
//
// The memory is lent to the sink: it stays where it is until the sink is destroyed.
//
// For VMMs whose memory this process maps; QEMU sends its pages itself (vmstate/qemu_capture.h).
//
// Thread rule: one thread; cancel through the signal from any. Lifetime: everything given to it outlives it.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "pager/convergence_rule.h"
#include "pager/dirty_bitmap.h"
#include "pager/dirty_source.h"
#include "pager/guest_memory.h"
#include "pager/page_sink.h"
#include "transport/cancel_signal.h"
#include "transport/os/clock.h"

namespace pageferry {

struct PassStats {
  std::uint32_t number = 0;  // from 1
  std::uint64_t pages = 0;   // put, zero pages included
  Nanoseconds duration{0};
  // Waiting for the store is part of the duration. 0 when nothing was put.
  std::uint64_t bytes_per_s() const;
};

struct BrownoutStats {
  BrownoutEnd end{};
  std::vector<PassStats> passes;
  PassFacts facts;  // what the end was decided on
};

class PageOut {
 public:
  // Told after each pass and the collection behind it.
  using Observer = std::function<void(const PassStats&, const PassFacts&)>;

  // `source` was started and nothing was collected from it;
  // sink.begin(memory.layout()) was called.
  PageOut(GuestPages& memory, DirtySource& source, PageSink& sink, const CancelSignal& cancel,
          const Clock& clock);

  // One pass of it: for a caller that decides by itself when the guest is
  // stopped. Before the first pass everything is collected.
  struct LivePass {
    PassStats pass;
    PassFacts facts;
  };
  Result<LivePass> run_live_pass();

  // Errors: canceled, the source's, the sink's. The guest has run on all the
  // time.
  Result<BrownoutStats> run_brownout(const ConvergenceLimits& limits, const Observer& observer);

  // Preconditions: run_brownout() or run_live_pass() ended well, the guest is paused and D1 holds.
  // After an error the guest may go on, and dirty() holds all that the sink
  // would still need.
  Result<PassStats> run_blackout();

  // What the sink does not have, as far as it was collected.
  const DirtyBitmap& dirty() const { return dirty_; }

 private:
  Result<PassStats> run_pass();
  Result<void> put_paused(DirtyBitmap& work);
  Result<void> put(const DirtyBitmap& work, PageIndex from, PageIndex end);
  Unexpected in_pass(Error error) const;

  GuestPages& memory_;
  DirtySource& source_;
  PageSink& sink_;
  const CancelSignal& cancel_;
  const Clock& clock_;
  DirtyBitmap dirty_;
  std::uint32_t passes_ = 0;
  std::uint64_t first_pass_bytes_per_s_ = 0;
};

}  // namespace pageferry
