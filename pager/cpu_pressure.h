// CpuPressure: whether a thread that works gets a CPU when it wants one. Where it does not, the host allows this machine no more (a quota
// used up, the whole machine stopped) or others are waiting, a guest's vCPUs among them; work that nobody waits for should then be done
// at leisure, and may be done at full speed where it is not so.
//
// Two signs, either is enough: of some 20 ms of work a quarter was spent without a CPU; or one turn, of which a thousand fit into a
// second, took 5 ms, whatever the reason (a stop of the machine may be counted as CPU time: whether it is depends on the kernel).
//
// Thread rule: one thread.
#pragma once

#include "transport/os/clock.h"

namespace pageferry {

class CpuPressure {
 public:
  // A turn of work without a voluntary wait ended at `now`; it took `took`, and had a CPU for `on_cpu` of that.
  void note(Nanoseconds took, Nanoseconds on_cpu, Nanoseconds now);
  // There was a sign within the last half second.
  bool felt(Nanoseconds now) const { return now < until_; }

 private:
  Nanoseconds took_{0};  // of the turns since the share was last looked at
  Nanoseconds on_cpu_{0};
  Nanoseconds until_{0};
};

}  // namespace pageferry
