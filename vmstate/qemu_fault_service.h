// QemuFaultService: brings pages to a destination QEMU whose monitor does not answer. When a pager dies, a thread of QEMU's may wait
// for a page while it holds QEMU's global lock; then the main loop waits for that lock, and the monitor for the main loop. Nobody gets
// in through the monitor before that page is there, so this gets in without: it needs a QemuMemoryMap, and nothing of QEMU.
//
//   a thread waits --> UFFDIO_WAKE: it asks again --> userfaultfd --> PageIn --> UFFDIO_COPY --> QEMU's main loop runs again
//
// It brings what somebody waits for and what lies around it, not the rest: that is the restore's (QemuRestore::attach), which may begin
// beside it. Both read the same userfaultfd, a fault comes to one of them, and a page that both bring is placed once.
//
// QEMU's own fault thread reads there too: once, then it waits for its stream. So whoever waits is woken again from time to time.
//
// Only for restores with direct placement: in the stream QEMU counts pages itself, and a page of ours would end its migration.
//
// Thread rule: construct and destroy on one thread; pages_placed() from any. Lifetime: the supply outlives it, and is used by nobody
// else meanwhile.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "pager/page_in.h"
#include "pager/page_supply.h"
#include "pager/userfault_outlet.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "vmstate/qemu_memory_map.h"

namespace pageferry {

class QemuFaultService {
 public:
  // Errors: gone (that QEMU has ended), not_found (it waits for no pages), unsupported (we may not trace it, or it is restored in the
  // stream), invalid (its blocks are not those of the supply), vmm.
  static Result<std::unique_ptr<QemuFaultService>> start(const QemuMemoryMap& map,
                                                         PageSupply& supply);
  // Ends the thread. Whoever still waits asks again, whoever hears it then.
  ~QemuFaultService();
  QemuFaultService(const QemuFaultService&) = delete;
  QemuFaultService& operator=(const QemuFaultService&) = delete;

  // So far. Grows as long as somebody misses pages and they can be brought.
  std::uint64_t pages_placed() const;

 private:
  QemuFaultService(const QemuMemoryMap& map, SentMap sent, PageSupply& supply);
  void run();
  Result<void> turn();
  Result<void> wait_for_event();

  MonotonicClock clock_;
  PageSupply* supply_;
  MemoryLayout layout_;
  UserfaultOutlet outlet_;
  PageIn page_in_;
  Nanoseconds wake_at_{0};
  UniqueFd stop_;
  std::atomic<bool> stop_requested_{false};
  std::jthread thread_;
};

}  // namespace pageferry
