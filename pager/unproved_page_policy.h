// UnprovedPagePolicy: what a page-in loop does with pages that cannot be proved (BadPages). A page is only given up when somebody needs it
// now: its storage may recover until then.
//
//   set aside by PageIn --> somebody waits for it, or it is all that is missing
//                             |-- end_service:   the error, at once (also when nobody waits)
//                             |-- leave_waiting: read again each second; an error only when nothing else is missing and that did not help
//                             +-- poison:        read again once, then poisoned
//
// Thread rule: turn() on the loop's thread; the counts from any. Lifetime: page-in, outlet and clock outlive it.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <optional>

#include "pager/ballooning_outlet.h"
#include "pager/page_in.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"

namespace pageferry {

// What becomes of a page that cannot be proved.
enum class BadPages : std::uint8_t {
  end_service,    // the loop ends with the error; whoever waits goes on waiting
  leave_waiting,  // reported (figures); who waits for it waits, and it is read again each second; all others are served
  poison,  // who touches it gets SIGBUS, a guest a machine check (UFFDIO_POISON, Linux 6.6; where that is missing: leave_waiting)
};

enum class ServeUntil : std::uint8_t {
  all_there,  // every page is there: the VMM closes its userfaultfd then
  vmm_ends,   // removals must be heard, and removed pages be made zero, as long as the VMM lives
};

class UnprovedPagePolicy {
 public:
  // `page_in`: made with UnprovedPages::set_aside.
  UnprovedPagePolicy(PageIn& page_in, BallooningOutlet& outlet, std::uint64_t pages_total,
                     BadPages bad_pages, ServeUntil serve_until, const Clock& clock);

  // After each step of PageIn. Errors: corrupt or io (the first page, named), and the outlet's.
  Result<void> turn();
  // When turn() has something to do though nothing happens.
  std::optional<Nanoseconds> wake_at() const { return wake_at_; }

  // Pages that could not be proved when they were read last, those that were poisoned included.
  std::uint64_t pages_bad() const { return pages_bad_; }
  std::uint64_t pages_poisoned() const { return pages_poisoned_; }

 private:
  struct Tried {
    PageRun run;
    unsigned times = 0;  // read again since it was set aside first
    Nanoseconds next_at{0};
  };
  void forget_proved();
  Result<void> treat(Tried& tried, const PageIn::Unproved& unproved, bool alone_missing);
  Result<bool> try_to_poison(const Tried& tried);

  PageIn* page_in_;
  BallooningOutlet* outlet_;
  std::uint64_t pages_total_;
  BadPages bad_pages_;
  ServeUntil serve_until_;
  const Clock& clock_;
  std::map<std::uint64_t, Tried> tried_;  // by first page
  std::optional<Nanoseconds> wake_at_;
  std::atomic<std::uint64_t> pages_bad_{0};
  std::atomic<std::uint64_t> pages_poisoned_{0};
};

}  // namespace pageferry
