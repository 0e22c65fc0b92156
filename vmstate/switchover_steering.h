// SwitchoverSteering: how many dirty bytes may be left when the guest is stopped. Arithmetic only;
// knows no QMP, no time.
//
// It begins with a threshold that costs next to nothing and raises it only when passes have stopped
// to shrink: first to what the passes show to be reachable, up to the target downtime, then towards
// the maximum. So a guest that writes little is stopped with a few pages left, and one that writes
// much is stopped as soon as its limit allows.
//
// Thread rule: value, one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>

#include "transport/os/clock.h"

namespace pageferry {

class SwitchoverSteering {
 public:
  struct Limits {
    Milliseconds target_downtime{30};
    Milliseconds max_downtime{300};
    unsigned passes_max = 60;
  };
  explicit SwitchoverSteering(Limits limits) : limits_(limits) {}

  // How fast pages go from a stopped guest to the store, as measured. Keeps the highest.
  void on_bandwidth(std::uint64_t bytes_per_s);
  // A pass after the first is over; it carried so many bytes: what the guest had dirtied at its
  // beginning.
  void on_pass(std::uint64_t dirty_bytes);
  // Passes begin to count against passes_max: nothing but the dirty rate stands against the switch
  // any more.
  void start_counting() { counting_ = true; }

  // The guest may be stopped when fewer bytes than this are dirty.
  std::uint64_t threshold_bytes() const;
  bool not_converging() const { return counted_passes_ >= limits_.passes_max; }
  Milliseconds max_downtime() const { return std::max(limits_.max_downtime, Milliseconds(1)); }

 private:
  std::uint64_t bytes_in(Nanoseconds time) const;
  std::uint64_t floor_bytes() const;
  std::uint64_t target_bytes() const;
  std::uint64_t max_bytes() const;
  void raise();

  Limits limits_;
  std::uint64_t bandwidth_ = 0;
  std::uint64_t raised_to_ = 0;  // 0: still at the floor
  std::deque<std::uint64_t> recent_;
  unsigned stalled_passes_ = 0;
  unsigned counted_passes_ = 0;
  bool counting_ = false;
};

}  // namespace pageferry
