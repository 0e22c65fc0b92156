// PageIn: brings the pages of a guest from a PageSupply to a PageOutlet: those that are asked for
// first, then, unasked, the rest in the Prefetcher's order. Decides what is read and what leaves
// next; owns no socket and no thread.
//
//   request() ---> demand reads ---> demanded -->+
//                      |                         +--> urgent channel
//                      +---------> around ------>+
//   Prefetcher --> prefetch reads -> background ----> background channel
//
// Rules it keeps:
//   I1  Each page leaves exactly once (SentMap), whatever is asked for again.
//   I2  A demanded page never waits behind prefetched ones of ours: it has its own queue and reads,
//       and prefetch may pause while a fault is open (prefetch_held_max). A page that is asked for
//       while prefetch has it is taken out of prefetch's queue.
//   I3  Prefetch is bounded in bytes: at the storage by PrefetchWindow, between storage and channel
//       by kReadyBytesMax.
//   I4  Of a backing page larger than a page, all pages leave on one channel, ascending, with no
//       other page in between.
//   I5  A page whose read failed alone is never sent. Either failure() names it and prefetch ends, while other
//       requests are still served; or it is set aside (UnprovedPages), and all others come.
//
// Thread rule: one thread; counters() and fault_latency() may be read from any.
// Lifetime: supply, layout, outlet and clock outlive it. Reads may be in flight at the supply when
// it is destroyed.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "pager/backing_transfer.h"
#include "pager/cpu_pressure.h"
#include "pager/latency_histogram.h"
#include "pager/memory_layout.h"
#include "pager/page.h"
#include "pager/page_outlet.h"
#include "pager/page_piece.h"
#include "pager/page_supply.h"
#include "pager/prefetch_order.h"
#include "pager/prefetch_window.h"
#include "pager/sent_map.h"
#include "pager/touch_record.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"

namespace pageferry {

enum class ChannelCount : std::uint8_t { one, two };

// How much of the machine prefetch may take. A guest that has just been resumed needs its CPUs for itself: every page that it
// touches, and under TCG every instruction, is new to the destination.
enum class PrefetchPace : std::uint8_t {
  held,    // before the guest runs: only what is asked for
  gentle,  // just after: a third of the full speed or less
  full,
};

// What becomes of the rest when a page cannot be proved.
enum class UnprovedPages : std::uint8_t {
  end_prefetch,  // failure(); only requests are served
  set_aside,     // unproved(); the rest goes on
};

enum class TouchRecording : std::uint8_t { off, on };

struct PageInOptions {
  PrefetchOrder order = PrefetchOrder::hot;
  std::vector<PageRun> recorded{};  // for PrefetchOrder::recorded; inside the layout
  TouchRecording recording = TouchRecording::off;
  UnprovedPages unproved = UnprovedPages::end_prefetch;
  // Read for a fault with none close by among the latest ones: a power of two, at least 4. With one close by, 64.
  std::uint64_t pages_around_lone_fault = 16;
  std::uint64_t prefetch_bytes_in_flight_max = kPrefetchWindowBytesUsual;
  // While nobody faults and reads are quick, where it is more: a first fault then waits longer, once. Reads are longer then, too.
  std::uint64_t prefetch_bytes_in_flight_quiet_max = 0;
  // A fault is slow, and prefetch to give way, from this beyond three times the best ones.
  Nanoseconds fault_latency_slack = std::chrono::microseconds(300);
  std::uint64_t prefetch_bandwidth_bytes_per_s = 0;  // 0 = no limit
  // While a fault is open, prefetch waits for it, but no longer than this: for an outlet that keeps others busy with each page.
  Nanoseconds prefetch_held_max{0};
  ChannelCount channels = ChannelCount::two;
};

struct PageInCounters {
  std::atomic<std::uint64_t> pages_demand{0};      // sent because they were asked for
  std::atomic<std::uint64_t> pages_prefetched{0};  // sent unasked, fault-around included
  std::atomic<std::uint64_t> pages_zero{0};        // of both
  std::atomic<std::uint64_t> faults{0};
  std::atomic<std::uint64_t> faults_already_sent{0};
};

class PageIn {
 public:
  // `layout`: the destination's, with its backing page sizes; pages as in supply.layout(). `sent`:
  // all absent, or what the destination says it has (whole backing pages).
  PageIn(PageSupply& supply, const MemoryLayout& layout, SentMap sent, PageOutlet& outlet,
         const Clock& clock, PageInOptions options);
  PageIn(const PageIn&) = delete;
  PageIn& operator=(const PageIn&) = delete;

  // The destination asks for pages: each backing page that `run` touches. Precondition: inside the
  // layout.
  void request(PageRun run);

  void set_pace(PrefetchPace pace);
  // Does all that can be done now without waiting: takes finished reads, sends, starts reads.
  // Errors are the outlet's.
  Result<void> step();
  // step() has more to do though no read finishes and no channel gets room.
  bool wants_step() const { return wants_step_; }
  // When step() should be called though nothing happens (bandwidth limit, a rest between two turns of prefetch).
  std::optional<Nanoseconds> wake_at() const { return wake_at_; }

  bool complete() const { return sent_.all_sent(); }
  // Somebody waits for a page.
  bool has_open_faults() const { return !open_faults_.empty(); }
  // The first page that could not be proved; the message names block and offset.
  const std::optional<Error>& failure() const { return failure_; }

  // It was handed to the outlet, with all of its backing page, or was there from the start.
  bool has_left(PageIndex page) const;
  std::uint64_t pages_left() const { return sent_.pages_sent(); }

  // With UnprovedPages::set_aside: pages, or whole backing pages, whose last read failed; by their first page. They are not under way.
  struct Unproved {
    PageRun run;
    Error error;
  };
  const std::map<std::uint64_t, Unproved>& unproved() const { return unproved_; }
  // Somebody waits for it.
  bool is_wanted(PageIndex first) const { return open_faults_.contains(raw(first)); }
  // Preconditions for both: `first` is in unproved(), and leaves it. The storage may have recovered: read as if asked for.
  void read_again(PageIndex first);
  // The outlet has settled it in another way; counts as left.
  void settle_unproved(PageIndex first);

  // TouchRecording::on: so far.
  const TouchRecord& touches() const { return touches_; }
  const PageInCounters& counters() const { return counters_; }
  // From request() to the page's hand-over to the outlet.
  const LatencyHistogram& fault_latency() const { return fault_latency_; }

 private:
  using Queue = std::deque<PagePiece>;
  enum class Purpose : std::uint8_t { demand, around, prefetch };
  struct Read {
    PageRun run;
    Purpose purpose = Purpose::prefetch;
    std::vector<PageIndex> wanted{};  // pages of it that were asked for
    Nanoseconds started_at{0};
  };

  void request_page(PageIndex page);
  void request_backing(PageRun unit);
  void start_fault(PageIndex page);
  void read_fault(PageIndex fault, PageRun run);
  void note_touch(PageRun run) {
    if (options_.recording == TouchRecording::on) touches_.note(run);
  }
  void promote(PageIndex page);
  bool promote_in(Queue& queue, PageIndex page);
  bool promote_read(Purpose from, PageIndex page);
  PageRun fault_window(PageIndex page);
  std::optional<PageRun> backing_of(PageIndex page) const;

  std::deque<Read>& waiting_for(Purpose purpose);
  void start_waiting(std::deque<Read>& reads);
  bool try_start(Read& read);
  void collect();
  void take_done(const Read& read, PagePiece piece);
  void take_failed(Read read, const Error& error);
  Error unproved_error(PageIndex page, const Error& error) const;
  void set_aside(PageIndex page, Error error);
  void drop_spoiled(PageChannel channel);
  BackingTransfer* transfer_holding(PageIndex page);
  bool ready_full(std::uint64_t window_bytes) const;
  void start_prefetch();
  void take_choice(const PrefetchChoice& choice);
  std::uint64_t prefetch_run_pages_max(Nanoseconds now) const;

  std::optional<BackingTransfer>& transfer_on(PageChannel channel);
  void activate_transfers();
  void read_for(BackingTransfer& transfer, Purpose purpose);

  enum class Progress : std::uint8_t { drained, stuck };
  Nanoseconds background_rest(Nanoseconds now) const;
  bool wanted(const std::optional<BackingTransfer>& transfer) const;
  Result<Progress> send_urgent();
  Result<void> send_background();
  Result<std::uint64_t> put_some(PageChannel channel, const PagePiece& piece,
                                 std::uint64_t& budget);
  Result<Progress> send_queue(PageChannel channel, Queue& queue, std::uint64_t& budget);
  Result<Progress> send_transfer(PageChannel channel, std::uint64_t& budget);
  Result<std::uint64_t> put(PageChannel channel, const PagePiece& piece);
  void settle(PageRun run);

  // constant after construction
  PageSupply* supply_;
  const MemoryLayout* layout_;
  PageOutlet* outlet_;
  const Clock* clock_;
  PageInOptions options_;

  SentMap sent_;
  Prefetcher prefetcher_;
  PrefetchWindow window_;
  TicketUses tickets_;

  // No slot at the supply yet:
  std::deque<Read> demand_reads_;
  std::deque<Read> around_reads_;
  std::deque<Read> prefetch_reads_;
  std::unordered_map<std::uint64_t, Read> reads_;  // under way, by ticket
  std::uint64_t prefetch_pages_reading_ = 0;

  Queue demanded_;    // in hand, somebody waits
  Queue around_;      // in hand, beside a demanded page
  Queue background_;  // in hand, prefetched
  std::uint64_t background_pages_ = 0;

  std::deque<PageRun> backing_wanted_;  // asked for, not yet in a transfer
  std::optional<PageRun> backing_prefetch_;
  std::optional<BackingTransfer> urgent_transfer_;
  std::optional<BackingTransfer> background_transfer_;

  std::unordered_map<std::uint64_t, Nanoseconds>
      open_faults_;  // raw page (first of a backing page) -> asked at
  std::deque<std::uint64_t>
      fault_regions_;  // of the latest faults, for fault-around; at most kRegionsKept
  PrefetchPace pace_ = PrefetchPace::full;
  Nanoseconds background_ran_at_{0};
  Nanoseconds background_cost_{0};  // how long its last turn took
  CpuPressure cpu_pressure_;        // on its turns
  bool wants_step_ = false;
  std::optional<Nanoseconds> wake_at_;
  std::optional<Error> failure_;
  std::map<std::uint64_t, Unproved> unproved_;
  TouchRecord touches_;
  PageInCounters counters_;
  LatencyHistogram fault_latency_;
};

}  // namespace pageferry
