// FirecrackerService: brings the memory of a guest that Firecracker has restored with the memory backend `Uffd`: pages that a vCPU waits
// for first, the rest unasked, from any PageSupply; and zeros for what the balloon has given back. Serves until Firecracker ends: also when
// every page is there, because a balloon waits until somebody hears of each page that it gives back, and then the page is missing again.
//
//   userfaultfd --> BallooningOutlet --> PageIn --> RegionSupply --> the source
//        ^                |                 |
//        +-- UFFDIO_COPY -+<----------------+
//
// It ends with an error, and leaves whoever waits waiting, when a page cannot be proved or placed: Firecracker has a duplicate of the
// userfaultfd, so that nobody reads zeros for a page that nobody brings. Nothing can be started in its place.
//
// Thread rule: one thread. Lifetime: source and clock outlive it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "pager/ballooning_outlet.h"
#include "pager/page_in.h"
#include "pager/page_supply.h"
#include "pager/region_supply.h"
#include "pager/removed_pages.h"
#include "pager/userfault_outlet.h"
#include "transport/cancel_signal.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/firecracker_socket.h"

namespace pageferry {

struct FirecrackerFigures {
  std::uint64_t pages_total = 0;
  std::uint64_t pages_demand = 0;  // brought because somebody asked for them
  std::uint64_t pages_prefetched =
      0;                         // unasked; with those that had been removed and were passed over
  std::uint64_t pages_zero = 0;  // of both
  std::uint64_t pages_removed = 0;   // given back by the guest since it was restored
  std::uint64_t removed_faults = 0;  // answered with zeros because of that
  std::uint64_t faults = 0;          // on all others
  std::uint64_t faults_already_sent = 0;
  std::uint64_t fault_p50_us = 0;
  std::uint64_t fault_p99_us = 0;
  std::uint64_t fault_max_us = 0;
  std::optional<Nanoseconds> resident_after;  // since the start, once every page is there
};

class FirecrackerService {
 public:
  // Errors: unsupported (backing pages of 2 MiB, and its page tables cannot be looked at), gone, vmm.
  static Result<std::unique_ptr<FirecrackerService>> start(FirecrackerClient client,
                                                           PageSupply& source, PrefetchOrder order,
                                                           const Clock& clock);
  FirecrackerService(const FirecrackerService&) = delete;
  FirecrackerService& operator=(const FirecrackerService&) = delete;

  // Returns when the client has ended. `tell` is called about once a second, and when every page is there.
  // Errors: canceled, corrupt or io (a page that cannot be proved, named), no_space, vmm (it cannot be placed).
  Result<void> serve(const CancelSignal& stop,
                     const std::function<void(const FirecrackerFigures&)>& tell);

  FirecrackerFigures figures() const;

 private:
  FirecrackerService(FirecrackerClient client, PageSupply& source, PrefetchOrder order,
                     const Clock& clock);
  Result<void> turn();
  Result<void> wait_for_event(const CancelSignal& stop, Nanoseconds tell_at);
  Nanoseconds wait_limit(Nanoseconds tell_at) const;
  void hear_connection();
  bool client_has_ended() const;

  const Clock& clock_;
  const Nanoseconds started_at_;
  FirecrackerClient client_;
  RemovedPages removed_;
  RegionSupply supply_;
  UserfaultOutlet placing_;
  BallooningOutlet outlet_;
  PageIn page_in_;
  bool connection_closed_ = false;
  bool heard_its_end_ = false;
  std::optional<Nanoseconds> resident_at_;
};

}  // namespace pageferry
