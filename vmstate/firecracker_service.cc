// The loop: hear what happened, let PageIn do what it can, wait.
//
// When is the client gone? When its process has ended; the connection alone says little (older versions of Firecracker closed it as
// soon as the message was sent). Only where its process cannot be seen, in another process namespace, a closed connection is the end.
#include "vmstate/firecracker_service.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "transport/os/page_tables.h"
#include "transport/os/thread_priority.h"

namespace pageferry {
namespace {

constexpr Nanoseconds kTellInterval = Seconds(1);
// The thread of the VMM that removes pages has to run before anything can be placed again.
constexpr Nanoseconds kHeldInterval = std::chrono::microseconds(20);

// Where backing pages are larger than a page, the kernel's answers are told apart by the page tables.
Result<std::optional<PageTables>> tables_for(const FirecrackerClient& client) {
  const auto& blocks = client.regions.layout.blocks();
  const bool needed = std::any_of(blocks.begin(), blocks.end(), [](const RamBlock& block) {
    return block.backing_page_bytes != kPageSizeBytes;
  });
  if (!needed) return std::optional<PageTables>();
  auto tables = PageTables::open(client.pid);
  if (tables) return std::optional<PageTables>(std::move(*tables));
  return with_context(std::move(tables).error(), "regions of 2 MiB pages");
}

bool has_input(int fd) {
  pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
  return ::poll(&entry, 1, 0) == 1;
}

}  // namespace

FirecrackerService::FirecrackerService(FirecrackerClient client, PageSupply& source,
                                       PrefetchOrder order, const Clock& clock)
    : clock_(clock),
      started_at_(clock.now()),
      client_(std::move(client)),
      removed_(client_.regions.layout.pages()),
      supply_(source, client_.regions.layout, client_.regions.source_pages, removed_),
      placing_(client_.regions.layout, client_.regions.addresses,
               UserfaultOutlet::WhenChanging::give_back),
      outlet_(placing_, removed_),
      page_in_(supply_, client_.regions.layout, SentMap(client_.regions.layout.pages()), outlet_,
               clock, {.order = order}) {}

Result<std::unique_ptr<FirecrackerService>> FirecrackerService::start(FirecrackerClient client,
                                                                      PageSupply& source,
                                                                      PrefetchOrder order,
                                                                      const Clock& clock) {
  PF_ASSIGN(std::optional<PageTables> tables, tables_for(client));
  UniqueFd userfault = std::move(client.userfault);
  std::unique_ptr<FirecrackerService> service(
      new FirecrackerService(std::move(client), source, order, clock));
  PF_TRY(service->placing_.open(std::move(userfault), std::move(tables),
                                UserfaultOutlet::Registration::as_found));
  return service;
}

FirecrackerFigures FirecrackerService::figures() const {
  const PageInCounters& counters = page_in_.counters();
  const LatencyHistogram& latency = page_in_.fault_latency();
  FirecrackerFigures figures;
  figures.pages_total = client_.regions.layout.pages();
  figures.pages_demand = counters.pages_demand;
  figures.pages_prefetched = counters.pages_prefetched;
  figures.pages_zero = counters.pages_zero;
  figures.pages_removed = removed_.count();
  figures.removed_faults = outlet_.zeros_placed();
  figures.faults = counters.faults;
  figures.faults_already_sent = counters.faults_already_sent;
  figures.fault_p50_us = latency.percentile_us(500);
  figures.fault_p99_us = latency.percentile_us(990);
  figures.fault_max_us = latency.max_us();
  if (resident_at_) figures.resident_after = *resident_at_ - started_at_;
  return figures;
}

Result<void> FirecrackerService::serve(const CancelSignal& stop,
                                       const std::function<void(const FirecrackerFigures&)>& tell) {
  prefer_quick_wakeup();
  Nanoseconds tell_at{0};
  for (;;) {
    if (auto turned = turn(); !turned) {
      // What its end looks like from here depends on how far it got with it.
      const bool ended = turned.error().code == Errc::gone || client_has_ended();
      if (ended && !page_in_.failure()) return {};
      return turned;
    }
    const bool now_complete = page_in_.complete() && !resident_at_;
    if (now_complete) resident_at_ = clock_.now();
    if (now_complete || clock_.now() >= tell_at) {
      tell(figures());
      tell_at = clock_.now() + kTellInterval;
    }
    PF_TRY(wait_for_event(stop, tell_at));
    if (heard_its_end_) return {};
  }
}

Result<void> FirecrackerService::turn() {
  std::vector<PageRun> faults;
  PF_TRY(outlet_.read_faults(faults));
  for (const PageRun& fault : faults) page_in_.request(fault);
  PF_TRY(page_in_.step());
  if (!page_in_.failure()) return {};
  return tl::make_unexpected(*page_in_.failure());
}

Nanoseconds FirecrackerService::wait_limit(Nanoseconds tell_at) const {
  if (outlet_.held()) return kHeldInterval;
  if (page_in_.wants_step()) return Nanoseconds(0);
  Nanoseconds until = tell_at;
  if (const auto step_at = page_in_.wake_at()) until = std::min(until, *step_at);
  return std::clamp(until - clock_.now(), Nanoseconds(0), kTellInterval);
}

Result<void> FirecrackerService::wait_for_event(const CancelSignal& stop, Nanoseconds tell_at) {
  const auto limit_ns = wait_limit(tell_at);
  const timespec limit{.tv_sec = limit_ns / Seconds(1), .tv_nsec = (limit_ns % Seconds(1)).count()};
  // A descriptor of -1 is passed over.
  const int connection = connection_closed_ ? -1 : client_.connection.get();
  std::array<pollfd, 5> entries{{{.fd = placing_.fd(), .events = POLLIN, .revents = 0},
                                 {.fd = supply_.ready_fd(), .events = POLLIN, .revents = 0},
                                 {.fd = stop.fd(), .events = POLLIN, .revents = 0},
                                 {.fd = connection, .events = POLLIN, .revents = 0},
                                 {.fd = client_.process.get(), .events = POLLIN, .revents = 0}}};
  if (::ppoll(entries.data(), entries.size(), &limit, nullptr) < 0 && errno != EINTR) {
    return syscall_error("ppoll", "page faults of Firecracker");
  }
  if (stop.canceled()) return fail(Errc::canceled, "asked to stop while the guest needs its pages");
  if ((entries[0].revents & (POLLERR | POLLHUP | POLLNVAL)) != 0) {
    return fail(Errc::vmm, "the userfaultfd of Firecracker cannot be waited for");
  }
  if (entries[3].revents != 0) hear_connection();
  heard_its_end_ = entries[4].revents != 0 || (connection_closed_ && !client_.process.valid());
  return {};
}

// Nothing is ever said there after the message; what is said nevertheless is nothing to us.
void FirecrackerService::hear_connection() {
  std::array<char, 512> ignored;
  const ssize_t got =
      ::recv(client_.connection.get(), ignored.data(), ignored.size(), MSG_DONTWAIT);
  if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR))) return;
  connection_closed_ = true;
}

bool FirecrackerService::client_has_ended() const {
  if (client_.process.valid()) return has_input(client_.process.get());
  return connection_closed_;
}

}  // namespace pageferry
