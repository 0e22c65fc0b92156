// The loop: hear what happened, let PageIn do what it can, wait. A fault that is read at the start of a turn has its read started in the
// same turn; it waits for at most the rest of the turn before, which is bounded by one small batch of prefetched pages.
//
// Beginning where another pager died: whoever waits is woken and asks again (a fault that the dead one had read is told to nobody a second
// time by itself); pages that are there are not read again where the page tables tell, and refused by the kernel where they do not. Both
// come before the first fault is read, and neither depends on what the dead pager knew.
#include "pager/userfault_page_in.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "pager/present_pages.h"
#include "transport/os/thread_priority.h"

namespace pageferry {
namespace {

// The thread of the VMM that removes pages has to run before anything can be placed again.
constexpr Nanoseconds kHeldInterval = std::chrono::microseconds(20);
constexpr Nanoseconds kWaitMax = Seconds(1);
constexpr std::uint64_t kBytesInFlightInFaults = std::uint64_t{256} << 10;
// What keeps a disk of 3.5 GB/s busy.
constexpr std::uint64_t kBytesInFlightInQuiet = std::uint64_t{2} << 20;
constexpr Nanoseconds kLatencySlack = std::chrono::microseconds(100);
// To sleep and be woken costs some 20 us each time where the CPU is a virtual one, and a vCPU waits for it. So nobody sleeps while a
// fault is
// open, nor right after one (who faulted once often faults again at once), as long as that cannot be for long.
constexpr Nanoseconds kAwakeAfterFault = std::chrono::microseconds(300);
constexpr Nanoseconds kAwakeAfterService = std::chrono::microseconds(50);
constexpr unsigned kTurnsWithoutLookMax = 16;

std::vector<PageIndex> places_in_supply(const std::vector<PageIndex>& given,
                                        const MemoryLayout& layout) {
  if (!given.empty()) return given;
  std::vector<PageIndex> places;
  for (const RamBlock& block : layout.blocks()) places.push_back(block.first_page);
  return places;
}

Result<void> check(const UserfaultVmm& vmm, const MemoryLayout& layout, const PageSupply& supply) {
  PF_CHECK(vmm.block_addresses.size() == layout.blocks().size());
  if (vmm.source_pages.empty()) PF_TRY(layout.check_same_blocks(supply.layout()));
  if (layout.has_large_pages() && !vmm.tables) {
    return fail(Errc::unsupported,
                "guest memory of huge pages, and the page tables of its VMM cannot be read");
  }
  return {};
}

PageInOptions with_our_duties(PageInOptions options) {
  options.unproved = UnprovedPages::set_aside;
  options.recording = TouchRecording::on;
  options.channels = ChannelCount::two;
  // What is read beside a lone fault delays the next one: here a fault costs little more than its read, so that is not worth it.
  options.pages_around_lone_fault = 4;
  options.prefetch_bytes_in_flight_quiet_max = kBytesInFlightInQuiet;
  options.prefetch_bytes_in_flight_max =
      std::min(options.prefetch_bytes_in_flight_max, kBytesInFlightInFaults);
  options.fault_latency_slack = kLatencySlack;
  return options;
}

bool is_readable(int fd, short events) {
  pollfd entry{.fd = fd, .events = events, .revents = 0};
  return ::poll(&entry, 1, 0) == 1;
}

}  // namespace

UserfaultPageIn::UserfaultPageIn(UserfaultVmm vmm, const MemoryLayout& layout, PageSupply& supply,
                                 RemovalReports* reports, const UserfaultPageInOptions& options,
                                 PageMarks marks, const Clock& clock)
    : clock_(clock),
      started_at_(clock.now()),
      layout_(&layout),
      serve_until_(options.serve_until),
      while_faults_are_open_(options.while_faults_are_open),
      tell_interval_(options.tell_interval),
      process_fd_(vmm.process_fd),
      connection_fd_(vmm.connection_fd),
      pages_found_(marks.there.pages_sent()),
      removed_(std::move(marks.removed)),
      supply_(supply, layout, places_in_supply(vmm.source_pages, layout), *removed_),
      placing_(layout, std::move(vmm.block_addresses), UserfaultOutlet::WhenChanging::give_back),
      outlet_(placing_, *removed_, reports),
      page_in_(supply_, layout, std::move(marks.there), outlet_, clock,
               with_our_duties(options.page_in)),
      bad_pages_(page_in_, outlet_, layout.pages(), options.bad_pages, options.serve_until, clock),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

Result<std::unique_ptr<UserfaultPageIn>> UserfaultPageIn::make(
    UserfaultVmm vmm, const MemoryLayout& layout, PageSupply& supply, RemovalReports* reports,
    const UserfaultPageInOptions& options, const Clock& clock) {
  PF_TRY(check(vmm, layout, supply));
  PageMarks marks = vmm.marks ? *std::exchange(vmm.marks, std::nullopt) : PageMarks(layout.pages());
  PF_CHECK(marks.there.pages() == layout.pages());
  if (vmm.tables) PF_TRY(mark_present(*vmm.tables, layout, vmm.block_addresses, marks.there));
  UniqueFd userfault = std::move(vmm.userfault);
  std::optional<PageTables> tables = std::move(vmm.tables);
  const UserfaultOutlet::Registration registration = vmm.registration;
  std::vector<Placing> placing = std::move(vmm.placing);
  std::unique_ptr<UserfaultPageIn> loop(new UserfaultPageIn(std::move(vmm), layout, supply, reports,
                                                            options, std::move(marks), clock));
  if (!loop->wake_.valid()) return syscall_error("eventfd", "page-in");
  if (!placing.empty()) loop->placing_.place_as(std::move(placing));
  // Opening wakes whoever waits.
  PF_TRY(loop->placing_.open(std::move(userfault), std::move(tables), registration));
  return loop;
}

UserfaultPageInFigures UserfaultPageIn::figures() const {
  const PageInCounters& counters = page_in_.counters();
  const LatencyHistogram& latency = page_in_.fault_latency();
  UserfaultPageInFigures figures;
  figures.pages_total = layout_->pages();
  figures.pages_found = pages_found_;
  figures.pages_demand = counters.pages_demand;
  figures.pages_prefetched = counters.pages_prefetched;
  figures.pages_there = pages_found_ + figures.pages_demand + figures.pages_prefetched;
  figures.pages_zero = counters.pages_zero;
  figures.pages_removed = removed_->count();
  figures.removed_faults = outlet_.zeros_placed();
  figures.pages_bad = bad_pages_.pages_bad();
  figures.pages_poisoned = bad_pages_.pages_poisoned();
  figures.faults = counters.faults;
  figures.faults_already_sent = counters.faults_already_sent;
  figures.fault_p50_us = latency.percentile_us(500);
  figures.fault_p99_us = latency.percentile_us(990);
  figures.fault_max_us = latency.max_us();
  const Nanoseconds resident_at(resident_at_.load());
  if (resident_at > Nanoseconds(0)) figures.resident_after = resident_at - started_at_;
  return figures;
}

Result<UserfaultPageIn::End> UserfaultPageIn::serve(
    const CancelSignal& stop, const std::function<void(const UserfaultPageInFigures&)>& tell) {
  prefer_quick_wakeup();
  Nanoseconds tell_at{0};
  for (;;) {
    if (auto turned = turn(); !turned) {
      // What its end looks like from here depends on how far it got with it.
      const Errc code = turned.error().code;
      const bool unproved = code == Errc::corrupt || code == Errc::io;
      if (!unproved && (code == Errc::gone || vmm_has_ended())) return End::vmm_ended;
      return tl::make_unexpected(std::move(turned).error());
    }
    const bool now_complete = page_in_.complete() && resident_at_ == 0;
    if (now_complete) resident_at_ = clock_.now().count();
    if (now_complete || clock_.now() >= tell_at) {
      tell(figures());
      tell_at = clock_.now() + tell_interval_;
    }
    if (now_complete && serve_until_ == ServeUntil::all_there) return End::all_there;
    PF_TRY(wait_for_event(stop, tell_at));
    if (heard_its_end_) return End::vmm_ended;
  }
}

Result<void> UserfaultPageIn::turn() {
  choose_pace();
  faults_.clear();
  PF_TRY(outlet_.read_faults(faults_, [this](PageIndex page) { return page_in_.has_left(page); }));
  for (const PageRun& fault : faults_) page_in_.request(fault);
  if (!faults_.empty()) stay_awake(kAwakeAfterFault);
  const bool waited_for = page_in_.has_open_faults();
  PF_TRY(page_in_.step());
  if (waited_for && !page_in_.has_open_faults()) stay_awake(kAwakeAfterService);
  return bad_pages_.turn();
}

void UserfaultPageIn::stay_awake(Nanoseconds duration) {
  if (while_faults_are_open_ == WhileFaultsAreOpen::sleep) return;
  awake_until_ = clock_.now() + duration;
}

void UserfaultPageIn::hold_prefetch() {
  pace_until_ = Nanoseconds::max().count();
}

void UserfaultPageIn::release_prefetch(Nanoseconds settle_time) {
  pace_until_ = (clock_.now() + settle_time).count();
  const std::uint64_t one = 1;
  // Fails only when the counter is full: then it is signalled already.
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof one);
}

void UserfaultPageIn::choose_pace() {
  const Nanoseconds until(pace_until_.load());
  PrefetchPace pace = PrefetchPace::full;
  if (until == Nanoseconds::max()) {
    pace = PrefetchPace::held;
  } else if (clock_.now() < until) {
    pace = PrefetchPace::gentle;
  }
  page_in_.set_pace(pace);
}

Nanoseconds UserfaultPageIn::wait_limit(Nanoseconds tell_at) const {
  if (outlet_.held()) return kHeldInterval;
  if (page_in_.wants_step() || clock_.now() < awake_until_) return Nanoseconds(0);
  Nanoseconds until = tell_at;
  if (const auto step_at = page_in_.wake_at()) until = std::min(until, *step_at);
  if (const auto look_at = bad_pages_.wake_at()) until = std::min(until, *look_at);
  return std::clamp(until - clock_.now(), Nanoseconds(0), kWaitMax);
}

// Nothing of the VMM's connection is read here: it may be somebody's. A closed one is seen without.
Result<void> UserfaultPageIn::wait_for_event(const CancelSignal& stop, Nanoseconds tell_at) {
  const auto limit_ns = wait_limit(tell_at);
  // Faults and reads are looked at in each turn anyway; the others can wait for some turns.
  if (limit_ns == Nanoseconds(0) && ++turns_without_look_ < kTurnsWithoutLookMax) return {};
  turns_without_look_ = 0;
  const timespec limit{.tv_sec = limit_ns / Seconds(1), .tv_nsec = (limit_ns % Seconds(1)).count()};
  const bool ends_with_connection = process_fd_ < 0;
  // A descriptor of -1 is passed over.
  const int connection = ends_with_connection ? connection_fd_ : -1;
  std::array<pollfd, 6> entries{{{.fd = placing_.fd(), .events = POLLIN, .revents = 0},
                                 {.fd = supply_.ready_fd(), .events = POLLIN, .revents = 0},
                                 {.fd = stop.fd(), .events = POLLIN, .revents = 0},
                                 {.fd = wake_.get(), .events = POLLIN, .revents = 0},
                                 {.fd = connection, .events = POLLRDHUP, .revents = 0},
                                 {.fd = process_fd_, .events = POLLIN, .revents = 0}}};
  if (::ppoll(entries.data(), entries.size(), &limit, nullptr) < 0 && errno != EINTR) {
    return syscall_error("ppoll", "page faults");
  }
  if (stop.canceled()) return fail(Errc::canceled, "asked to stop while the guest needs its pages");
  if ((entries[0].revents & (POLLERR | POLLHUP | POLLNVAL)) != 0) {
    return fail(Errc::vmm, "the userfaultfd of the VMM cannot be waited for");
  }
  if (entries[3].revents != 0) {
    std::uint64_t rung = 0;
    [[maybe_unused]] const ssize_t got = ::read(wake_.get(), &rung, sizeof rung);
  }
  heard_its_end_ = entries[4].revents != 0 || entries[5].revents != 0;
  return {};
}

bool UserfaultPageIn::vmm_has_ended() const {
  if (process_fd_ >= 0) return is_readable(process_fd_, POLLIN);
  return connection_fd_ >= 0 && is_readable(connection_fd_, POLLRDHUP);
}

const TouchRecord& UserfaultPageIn::touches() const {
  return page_in_.touches();
}

}  // namespace pageferry
