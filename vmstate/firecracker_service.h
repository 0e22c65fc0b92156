// FirecrackerService: brings the memory of a guest that Firecracker has restored with the memory backend `Uffd`: pages that a vCPU waits
// for first, the rest unasked, from any PageSupply; and zeros for what the balloon has given back. Serves until Firecracker ends: also when
// every page is there, because a balloon waits until somebody hears of each page that it gives back, and then the page is missing again.
//
// The loop is UserfaultPageIn; this gives it what Firecracker has said.
//
// It ends with an error, and leaves whoever waits waiting, when a page cannot be proved or placed: Firecracker has a duplicate of the
// userfaultfd, so that nobody reads zeros for a page that nobody brings. Nothing can be started in its place.
//
// Thread rule: one thread. Lifetime: source and clock outlive it.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "pager/page_supply.h"
#include "pager/userfault_page_in.h"
#include "transport/cancel_signal.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/firecracker_socket.h"

namespace pageferry {

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
                     const std::function<void(const UserfaultPageInFigures&)>& tell);

  UserfaultPageInFigures figures() const { return page_in_->figures(); }

 private:
  explicit FirecrackerService(FirecrackerClient client) : client_(std::move(client)) {}

  FirecrackerClient client_;  // its regions are the loop's
  std::unique_ptr<UserfaultPageIn> page_in_;
};

}  // namespace pageferry
