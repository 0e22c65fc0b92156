// One thread: read faults, let PageIn do what it can, wait. A failure ends it, and says nothing: the recovery that goes on without it
// meets the same trouble where there is somebody to tell.
#include "vmstate/qemu_fault_service.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "transport/os/signals_blocked.h"
#include "vmstate/qemu_memory_access.h"

namespace pageferry {
namespace {

// For faults that QEMU's own thread has read and cannot pass on. A thread that is woken in vain faults again: some microseconds.
constexpr Milliseconds kWakeInterval{50};

Result<void> check_map(const QemuMemoryMap& map, const MemoryLayout& supplied) {
  if (map.placement != PagePlacement::direct) {
    return fail(Errc::unsupported,
                fmt::format("the pages of QEMU {} come in its stream: nobody else may place them",
                            map.process.pid));
  }
  auto same = map.layout.check_same_blocks(supplied);
  if (same) return {};
  return with_context(std::move(same).error(),
                      fmt::format("memory map of QEMU {}", map.process.pid));
}

}  // namespace

QemuFaultService::QemuFaultService(const QemuMemoryMap& map, SentMap sent, PageSupply& supply)
    : supply_(&supply),
      layout_(map.layout),
      outlet_(layout_, map.block_addresses),
      page_in_(supply, layout_, std::move(sent), outlet_, clock_, {.order = PrefetchOrder::none}) {}

Result<std::unique_ptr<QemuFaultService>> QemuFaultService::start(const QemuMemoryMap& map,
                                                                  PageSupply& supply) {
  PF_TRY(check_map(map, supply.layout()));
  PF_ASSIGN(const QemuMemoryAccess access,
            QemuMemoryAccess::known(map.process, map.block_addresses));
  PF_ASSIGN(UniqueFd userfault, access.userfault());
  PF_ASSIGN(PageTables tables, access.page_tables());
  SentMap sent(map.layout.pages());
  PF_TRY(access.mark_present(map.layout, sent));
  std::unique_ptr<QemuFaultService> service(new QemuFaultService(map, std::move(sent), supply));
  service->stop_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!service->stop_.valid()) return syscall_error("eventfd", "fault service");
  PF_TRY(service->outlet_.open(std::move(userfault), std::move(tables),
                               UserfaultOutlet::Registration::as_found));
  const SignalsBlocked for_the_service;
  service->thread_ = std::jthread([raw_service = service.get()] { raw_service->run(); });
  return service;
}

QemuFaultService::~QemuFaultService() {
  if (!thread_.joinable()) return;
  stop_requested_ = true;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(stop_.get(), &one, sizeof one);
  thread_.join();
  // Faults that it had read and not answered.
  [[maybe_unused]] const auto woken = outlet_.wake_all();
}

std::uint64_t QemuFaultService::pages_placed() const {
  const PageInCounters& counters = page_in_.counters();
  return counters.pages_demand + counters.pages_prefetched;
}

void QemuFaultService::run() {
  while (!stop_requested_) {
    if (!turn() || !wait_for_event()) return;
  }
}

Result<void> QemuFaultService::turn() {
  if (clock_.now() >= wake_at_) {
    PF_TRY(outlet_.wake_all());
    wake_at_ = clock_.now() + kWakeInterval;
  }
  std::vector<PageRun> faults;
  PF_TRY(outlet_.read_faults(faults));
  for (const PageRun& fault : faults) page_in_.request(fault);
  return page_in_.step();
}

Result<void> QemuFaultService::wait_for_event() {
  if (page_in_.wants_step()) return {};
  Nanoseconds until = wake_at_;
  if (const auto step_at = page_in_.wake_at()) until = std::min(until, *step_at);
  const Nanoseconds wait =
      std::clamp(until - clock_.now(), Nanoseconds(0), Nanoseconds(kWakeInterval));
  const timespec limit{.tv_sec = 0, .tv_nsec = wait.count()};
  std::array<pollfd, 3> entries{{{.fd = outlet_.fd(), .events = POLLIN, .revents = 0},
                                 {.fd = supply_->ready_fd(), .events = POLLIN, .revents = 0},
                                 {.fd = stop_.get(), .events = POLLIN, .revents = 0}}};
  if (::ppoll(entries.data(), entries.size(), &limit, nullptr) < 0 && errno != EINTR) {
    return syscall_error("ppoll", "fault service");
  }
  return {};
}

}  // namespace pageferry
