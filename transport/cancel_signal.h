// CancelSignal: one thread tells another, which may be blocked in poll(2), that it should give up.
// Set once, never reset.
//
// Thread rule: internally synchronised. Lifetime: outlives every waiter that polls fd().
#pragma once

#include <sys/eventfd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>

#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

class CancelSignal {
 public:
  // Running out of descriptors aborts: a signal without one could not be heard.
  CancelSignal() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) { PF_CHECK(fd_.valid()); }
  CancelSignal(const CancelSignal&) = delete;
  CancelSignal& operator=(const CancelSignal&) = delete;

  // From any thread, any number of times; never blocks.
  void cancel() {
    canceled_.store(true);
    const std::uint64_t one = 1;
    while (::write(fd_.get(), &one, sizeof one) < 0 && errno == EINTR) {
    }
  }
  bool canceled() const { return canceled_.load(); }
  // Readable once canceled. Only for poll(2) and its kin; never read it.
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
  std::atomic<bool> canceled_{false};
};

}  // namespace pageferry
