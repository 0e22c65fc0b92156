// UserfaultPageIn: the loop that brings a guest's memory through the userfaultfd of its VMM: pages that a vCPU waits for first, the rest
// unasked, from any PageSupply; zeros for what the guest has given back. For every VMM whose pages are missing in the kernel's sense and
// that has no page stream of its own: the VMM hook, Firecracker.
//
//   userfaultfd ----> BallooningOutlet ----> PageIn <----> PageSupply
//        ^              |   ^                  |
//        +- COPY, ZERO -+   +-- pages ---------+
//
// It may begin where another pager died. The VMM keeps a duplicate of the userfaultfd, so its guest waits meanwhile; everybody is woken
// and asks again, and a page that is there already is found by the page tables, where they can be read, or by EEXIST, and never
// overwritten. The one thing that cannot be found out again is what was removed: RemovalReports keeps it.
//
// A page that cannot be proved (checksum, I/O, after all retries) is never installed. BadPages says what happens instead.
//
// Thread rule: serve() owns all page state and runs on one thread; hold_prefetch(), release_prefetch() and figures() from any thread.
// Lifetime: layout, supply, reports and clock outlive it. Destroying it never lets a guest read zeros as long as the VMM holds its
// duplicate.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "pager/ballooning_outlet.h"
#include "pager/memory_layout.h"
#include "pager/page_in.h"
#include "pager/page_supply.h"
#include "pager/region_supply.h"
#include "pager/removal_reports.h"
#include "pager/removed_pages.h"
#include "pager/sent_map.h"
#include "pager/touch_record.h"
#include "pager/unproved_page_policy.h"
#include "pager/userfault_outlet.h"
#include "transport/cancel_signal.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "transport/os/page_tables.h"

namespace pageferry {

// What the loop notes of each page: 3 bits. To touch that memory for the first time takes 0.1 ms for each GiB of guest, so it is made
// while the guest still runs elsewhere.
struct PageMarks {
  explicit PageMarks(std::uint64_t pages)
      : there(pages), removed(std::make_unique<RemovedPages>(pages)) {}
  SentMap there;
  std::unique_ptr<RemovedPages> removed;
};

// The VMM, as the loop needs it.
struct UserfaultVmm {
  UniqueFd userfault;  // a duplicate; does not block
  std::vector<std::uint64_t>
      block_addresses;  // of each block of the layout, in the VMM's address space
  // The supply's page at which each block begins, as RegionSupply; empty: both have the same blocks.
  std::vector<PageIndex> source_pages{};
  // Its page tables: needed where backing pages are larger than a page; else they only spare reads when another pager was here before.
  std::optional<PageTables> tables{};
  // Of each block; empty: all plain.
  std::vector<Placing> placing{};
  UserfaultOutlet::Registration registration = UserfaultOutlet::Registration::as_found;
  // How its end is seen; -1: not that way. Borrowed: they stay open as long as the loop. A process that has ended is the end; a closed
  // connection is, where the process is not given. The connection is never read from.
  int process_fd = -1;     // a pidfd
  int connection_fd = -1;  // a socket
  // Made beforehand, for as many pages as the layout has, and nothing noted yet; without, the loop makes them.
  std::optional<PageMarks> marks{};
};

// Whether the loop keeps a CPU while somebody waits for a page (300 us at most, and 50 us after it came) or sleeps until the read is done.
// Awake, a fault takes some 20 to 50 us less; where the guest's own threads want that CPU, they pay for it.
enum class WhileFaultsAreOpen : std::uint8_t { stay_awake, sleep };

struct UserfaultPageInOptions {
  PageInOptions page_in{};
  ServeUntil serve_until = ServeUntil::all_there;
  BadPages bad_pages = BadPages::leave_waiting;
  WhileFaultsAreOpen while_faults_are_open = WhileFaultsAreOpen::stay_awake;
  Nanoseconds tell_interval = Seconds(1);
};

struct UserfaultPageInFigures {
  std::uint64_t pages_total = 0;
  std::uint64_t pages_there = 0;   // settled: placed, found there, zero, removed or poisoned
  std::uint64_t pages_found = 0;   // of these: the page tables showed them at the start
  std::uint64_t pages_demand = 0;  // brought because somebody asked for them
  std::uint64_t pages_prefetched =
      0;                         // unasked; with those that had been removed and were passed over
  std::uint64_t pages_zero = 0;  // of both
  std::uint64_t pages_removed = 0;   // given back by the guest since it was restored
  std::uint64_t removed_faults = 0;  // answered with zeros because of that
  std::uint64_t pages_bad = 0;       // cannot be proved, up to now
  std::uint64_t pages_poisoned = 0;  // of these
  std::uint64_t faults = 0;          // on all others
  std::uint64_t faults_already_sent = 0;
  std::uint64_t fault_p50_us = 0;
  std::uint64_t fault_p99_us = 0;
  std::uint64_t fault_max_us = 0;
  std::optional<Nanoseconds> resident_after;  // since make(), once every page is there
};

class UserfaultPageIn {
 public:
  enum class End : std::uint8_t { all_there, vmm_ended };

  // `layout`: the destination's, with its backing page sizes. `reports`: may be null. Wakes whoever waits, and looks at what is there.
  // Errors: unsupported (backing pages larger than a page, and no page tables), invalid (the supply has other blocks), gone, vmm.
  static Result<std::unique_ptr<UserfaultPageIn>> make(UserfaultVmm vmm, const MemoryLayout& layout,
                                                       PageSupply& supply, RemovalReports* reports,
                                                       const UserfaultPageInOptions& options,
                                                       const Clock& clock);
  UserfaultPageIn(const UserfaultPageIn&) = delete;
  UserfaultPageIn& operator=(const UserfaultPageIn&) = delete;

  // `tell` is called on this thread every tell_interval, and when every page is there. Called once.
  // Errors: canceled (`stop`), corrupt or io (pages that cannot be proved, the first one named: at once with end_service; with
  // leave_waiting when all others are there and somebody must decide), no_space, vmm (a page cannot be placed).
  Result<End> serve(const CancelSignal& stop,
                    const std::function<void(const UserfaultPageInFigures&)>& tell);

  // Only what is asked for is brought, until prefetch is released: nothing stands before a guest that is being started. From any thread,
  // also before serve().
  void hold_prefetch();
  // The guest was resumed: full pace, after `settle_time` of gentle pace.
  void release_prefetch(Nanoseconds settle_time);

  UserfaultPageInFigures figures() const;
  // The order of first touches, for the next restore of this VM. When serve() has returned.
  const TouchRecord& touches() const;

 private:
  UserfaultPageIn(UserfaultVmm vmm, const MemoryLayout& layout, PageSupply& supply,
                  RemovalReports* reports, const UserfaultPageInOptions& options, PageMarks marks,
                  const Clock& clock);
  Result<void> turn();
  void stay_awake(Nanoseconds duration);
  void choose_pace();
  Result<void> wait_for_event(const CancelSignal& stop, Nanoseconds tell_at);
  Nanoseconds wait_limit(Nanoseconds tell_at) const;
  bool vmm_has_ended() const;

  // constant after construction
  const Clock& clock_;
  const Nanoseconds started_at_;
  const MemoryLayout* layout_;
  const ServeUntil serve_until_;
  const WhileFaultsAreOpen while_faults_are_open_;
  const Nanoseconds tell_interval_;
  const int process_fd_;
  const int connection_fd_;
  const std::uint64_t pages_found_;

  const std::unique_ptr<RemovedPages> removed_;
  RegionSupply supply_;
  UserfaultOutlet placing_;
  BallooningOutlet outlet_;
  PageIn page_in_;
  UnprovedPagePolicy bad_pages_;
  std::vector<PageRun> faults_;  // of one turn
  UniqueFd wake_;                // rung by other threads
  bool heard_its_end_ = false;
  Nanoseconds awake_until_{0};  // not to sleep before
  unsigned turns_without_look_ = 0;

  // Prefetch is gentle before this time; max: only recent pages for now.
  std::atomic<Nanoseconds::rep> pace_until_{0};
  std::atomic<Nanoseconds::rep> resident_at_{0};  // 0: not yet
};

}  // namespace pageferry
