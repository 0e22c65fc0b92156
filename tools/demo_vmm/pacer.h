// Pacer: turns rates into the budgets that vCPUs ask for. The guest has no clock: it does what it was given and asks again, and the
// answer waits until there is something to do. RateShare is the arithmetic of it, with time as an argument.
//
// Thread rule: RateShare one thread; Pacer internally locked, next() blocks.
#pragma once

#include <condition_variable>
#include <mutex>
#include <vector>

#include "tools/demo_vmm/guest/guest_format.h"
#include "tools/demo_vmm/vcpu.h"
#include "transport/os/clock.h"

namespace pageferry::demo {

// Of the whole guest, a second. More than it can do means: as fast as it can.
struct Rates {
  std::uint64_t write_pages = 0;
  std::uint64_t read_pages = 0;
  std::uint64_t disk_requests = 0;
  std::uint64_t give_backs = 0;  // times the balloon's unit
  friend bool operator==(const Rates&, const Rates&) = default;
};

// What one of `vcpus` may do.
class RateShare {
 public:
  RateShare(const Rates& rates, std::uint32_t vcpus) : rates_(rates), vcpus_(vcpus) {}
  // Of the time since the last call. A vCPU that was late does not catch up more than kCatchUp.
  Budget take(Nanoseconds now);

  static constexpr Nanoseconds kCatchUp = Milliseconds(20);

 private:
  std::uint32_t whole(double& owed, std::uint64_t rate, std::uint32_t limit, double seconds) const;

  Rates rates_;
  std::uint32_t vcpus_;
  Nanoseconds last_{-1};  // -1: not called yet
  double writes_ = 0;
  double reads_ = 0;
  double disk_ = 0;
  double give_backs_ = 0;
};

class Pacer {
 public:
  // A vCPU asks about this often. Then its heartbeat counter goes on too.
  static constexpr Nanoseconds kSlice = Milliseconds(1);

  Pacer(const Rates& rates, std::uint32_t vcpus);
  Rates rates() const;
  // For a guest that brings its own.
  void set_rates(const Rates& rates);

  // Waits for the vCPU's next slice, but not after hurry(). Ask::now: no work, at once.
  Budget next(std::uint32_t vcpu, Ask ask);
  void hurry();
  void relax();

 private:
  struct PerVcpu {
    RateShare share;
    Nanoseconds next_slice{0};
  };

  MonotonicClock clock_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Rates rates_;
  std::vector<PerVcpu> vcpus_;
  bool hurried_ = false;
};

}  // namespace pageferry::demo
