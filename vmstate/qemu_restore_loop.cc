// One turn: read what the destination asks for, let PageIn do all it can, then wait in epoll until
// one of them can go on. A request is read at the start of a turn and its read is started in the
// same turn: it waits for at most the rest of the turn before, which is bounded by one batch a
// channel (256 KiB) and one slice of searching.
#include "vmstate/qemu_restore_loop.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "transport/os/signals_blocked.h"
#include "transport/os/thread_priority.h"

namespace pageferry {
namespace {

constexpr Nanoseconds kLookAgain = Milliseconds(5);  // while pages are missing
// In the channels every page that is not for the fault takes from those that bring it: our thread, QEMU's, the CPUs.
constexpr Nanoseconds kHeldByFaultMax = Milliseconds(1);
// Nothing tells when QEMU has opened its userfaultfd; its devices wait for pages then.
constexpr Nanoseconds kLookForMemory = std::chrono::microseconds(200);

std::optional<UserfaultOutlet> outlet_into(const std::optional<QemuMemoryAccess>& memory,
                                           const MemoryLayout& layout) {
  if (!memory) return std::nullopt;
  return UserfaultOutlet(layout, memory->block_addresses());
}

std::optional<ListeningOutlet> listening_at(std::optional<UserfaultOutlet>& outlet) {
  if (!outlet) return std::nullopt;
  return ListeningOutlet(*outlet);
}

void ring(const UniqueFd& event) {
  const std::uint64_t one = 1;
  // Fails only when the counter is full: then it is signalled already.
  [[maybe_unused]] const ssize_t written = ::write(event.get(), &one, sizeof one);
}

}  // namespace

QemuRestoreLoop::QemuRestoreLoop(QemuPageChannels channels, QemuReturnPathReader return_path,
                                 PageSupply& supply, const MemoryLayout& layout, SentMap sent,
                                 PageInOptions options, std::optional<QemuMemoryAccess> memory)
    : supply_(&supply),
      channels_(std::move(channels)),
      return_path_(std::move(return_path)),
      memory_(std::move(memory)),
      memory_outlet_(outlet_into(memory_, layout)),
      listening_(listening_at(memory_outlet_)),
      page_in_(supply, layout, std::move(sent),
               listening_ ? static_cast<PageOutlet&>(*listening_) : channels_, clock_,
               std::move(options)) {}

Result<std::unique_ptr<QemuRestoreLoop>> QemuRestoreLoop::make(
    QemuPageChannels channels, QemuReturnPathReader return_path, PageSupply& supply,
    const MemoryLayout& layout, SentMap sent, PageInOptions options,
    std::optional<QemuMemoryAccess> memory) {
  options.channels = channels.count();
  options.prefetch_held_max = kHeldByFaultMax;
  if (memory) {
    // Nothing queues behind another, and no thread of QEMU's has work with a page.
    options.channels = ChannelCount::two;
    options.prefetch_held_max = Nanoseconds(0);
  }
  std::unique_ptr<QemuRestoreLoop> loop(
      new QemuRestoreLoop(std::move(channels), std::move(return_path), supply, layout,
                          std::move(sent), std::move(options), std::move(memory)));
  PF_TRY(loop->open_epoll());
  return loop;
}

QemuRestoreLoop::~QemuRestoreLoop() {
  request_stop();
}  // thread_ joins, then the channels close

Result<void> QemuRestoreLoop::open_epoll() {
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.valid()) return syscall_error("epoll_create1", "restore loop");
  stop_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop_.valid() || !wake_.valid()) return syscall_error("eventfd", "restore loop");
  for (const int fd : {channels_.main_fd(), channels_.urgent_fd(), supply_->ready_fd(), stop_.get(),
                       wake_.get()}) {
    PF_TRY(watch_input(fd));
  }
  return channels_.begin_pages();
}

Result<void> QemuRestoreLoop::watch_input(int fd) {
  if (fd < 0) return {};
  epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return syscall_error("epoll_ctl", "restore loop");
  }
  return {};
}

Result<void> QemuRestoreLoop::try_to_open_memory() {
  PF_ASSIGN(UniqueFd userfault, memory_->userfault());
  PF_ASSIGN(PageTables tables, memory_->page_tables());
  return memory_outlet_->open(std::move(userfault), std::move(tables));
}

// QEMU opens its userfaultfd when it reads LISTEN, at the head of the package with the devices.
Result<void> QemuRestoreLoop::open_memory() {
  if (!memory_ || memory_outlet_->is_open()) return {};
  auto opened = try_to_open_memory();
  if (!opened) {
    const Errc code = opened.error().code;
    const bool early = code == Errc::not_found || code == Errc::busy;
    if (early && !loaded_) return {};
    return opened;
  }
  return watch_input(memory_outlet_->fd());
}

void QemuRestoreLoop::start() {
  const SignalsBlocked for_the_loop;
  thread_ = std::jthread([this] { run(); });
}

void QemuRestoreLoop::request_stop() {
  ring(stop_);
}

void QemuRestoreLoop::run() {
  prefer_quick_wakeup();
  for (;;) {
    auto next = turn();
    if (!next) return publish_error(Event::failed, std::move(next).error());
    if (*next == Turn::end) return;
  }
}

void QemuRestoreLoop::release_prefetch(Nanoseconds settle_time) {
  pace_until_ = (clock_.now() + settle_time).count();
  ring(wake_);
}

void QemuRestoreLoop::choose_pace() {
  const Nanoseconds until(pace_until_.load());
  PrefetchPace pace = PrefetchPace::full;
  if (until == Nanoseconds::max()) {
    pace = PrefetchPace::held;
  } else if (clock_.now() < until) {
    pace = PrefetchPace::gentle;
  }
  page_in_.set_pace(pace);
}

Result<QemuRestoreLoop::Turn> QemuRestoreLoop::turn() {
  choose_pace();
  PF_TRY(open_memory());
  PF_TRY(read_requests());
  if (shut_) return Turn::end;
  PF_TRY(send());
  if (page_in_.failure() && !failure_published_) {
    failure_published_ = true;
    publish_error(Event::page_unproved, *page_in_.failure());
  }
  PF_TRY(wait_for_event());
  return Turn::go_on;
}

Result<void> QemuRestoreLoop::read_requests() {
  if (listening_) {
    std::vector<PageRun> faults;
    PF_TRY(listening_->read_faults(faults));
    for (const PageRun& fault : faults) page_in_.request(fault);
  }
  std::vector<qemu_stream::ReturnPathMessage> messages;
  PF_ASSIGN(const auto state, return_path_.read_available(messages));
  for (const qemu_stream::ReturnPathMessage& message : messages) {
    if (const auto* request = std::get_if<qemu_stream::PageRequest>(&message)) {
      page_in_.request(request->run);
    } else if (const auto* pong = std::get_if<qemu_stream::Pong>(&message)) {
      if (pong->value != kDevicesLoadedPing) continue;
      loaded_ = true;
      publish(Event::devices_loaded);
    } else if (const auto* shut = std::get_if<qemu_stream::Shut>(&message)) {
      if (shut->status != 0 || !page_in_.complete()) {
        return fail(
            Errc::vmm,
            fmt::format("the destination QEMU ended the page stream with status {}", shut->status));
      }
      shut_ = true;
      publish(Event::all_received);
      return {};
    }
  }
  if (state == QemuReturnPathReader::State::closed) {
    return fail(Errc::gone, "the destination QEMU closed the page channel");
  }
  return {};
}

Result<void> QemuRestoreLoop::send() {
  if (!ended_pages_) {
    PF_TRY(page_in_.step());
    if (page_in_.complete()) {
      channels_.end_pages();
      ended_pages_ = true;
    }
  }
  return channels_.flush();
}

Result<void> QemuRestoreLoop::watch(int fd, bool& watched_for_room, bool full) {
  if (fd < 0 || watched_for_room == full) return {};
  const std::uint32_t events = full ? (EPOLLIN | EPOLLOUT) : EPOLLIN;
  epoll_event event{.events = events, .data = {.fd = fd}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) != 0) {
    return syscall_error("epoll_ctl", "restore loop");
  }
  watched_for_room = full;
  return {};
}

// How long to sleep while pages are missing; less than a second.
Nanoseconds QemuRestoreLoop::wait_limit() const {
  if (memory_outlet_ && !memory_outlet_->is_open()) return kLookForMemory;
  if (page_in_.wants_step() || (listening_ && listening_->has_heard())) return Nanoseconds(0);
  // A channel that was full for the last step and has room by now is watched by nobody: without another look the restore would
  // wait for ever (seen in the 8th and the 18th of many moves in a row).
  const auto wake_at = page_in_.wake_at();
  if (!wake_at) return kLookAgain;
  return std::clamp(*wake_at - clock_.now(), Nanoseconds(0), kLookAgain);
}

Result<void> QemuRestoreLoop::wait_for_event() {
  PF_TRY(watch(channels_.main_fd(), main_watched_, channels_.main_full()));
  PF_TRY(watch(channels_.urgent_fd(), urgent_watched_, channels_.urgent_full()));
  const timespec limit{.tv_sec = 0, .tv_nsec = wait_limit().count()};
  std::array<epoll_event, 6> events;
  const int count = ::epoll_pwait2(epoll_.get(), events.data(), static_cast<int>(events.size()),
                                   ended_pages_ ? nullptr : &limit, nullptr);
  if (count < 0 && errno != EINTR) return syscall_error("epoll_pwait2", "restore loop");
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = events[static_cast<std::size_t>(i)];
    if (event.data.fd == stop_.get()) {
      return fail(Errc::canceled, "the restore was asked to stop");
    }
    if (event.data.fd == wake_.get()) {
      std::uint64_t rung = 0;
      [[maybe_unused]] const ssize_t got = ::read(wake_.get(), &rung, sizeof rung);
    }
    const bool hung_up = (event.events & (EPOLLHUP | EPOLLERR)) != 0;
    if (event.data.fd == channels_.urgent_fd() && hung_up && !ended_pages_) {
      return fail(Errc::gone, "the destination QEMU closed the urgent page channel");
    }
  }
  return {};
}

void QemuRestoreLoop::publish(Event event) {
  const std::lock_guard lock(mutex_);
  if (event == Event::devices_loaded) devices_loaded_ = true;
  if (event == Event::all_received) all_received_ = true;
  changed_.notify_all();
}

// A page that cannot be proved stays the reason, whatever happens to the channel afterwards.
void QemuRestoreLoop::publish_error(Event event, Error error) {
  const std::lock_guard lock(mutex_);
  if (!error_) {
    error_event_ = event;
    error_ = std::move(error);
  }
  changed_.notify_all();
}

std::optional<QemuRestoreLoop::Event> QemuRestoreLoop::wait(Event wanted, Deadline deadline) {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (wanted == Event::devices_loaded && devices_loaded_) return wanted;
    if (wanted == Event::all_received && all_received_) return wanted;
    if (error_) return error_event_;
    const int wait_ms = deadline.poll_timeout_ms();
    if (wait_ms == 0) return std::nullopt;
    if (wait_ms < 0) {
      changed_.wait(lock);
    } else {
      changed_.wait_for(lock, Milliseconds(wait_ms));
    }
  }
}

Error QemuRestoreLoop::error() const {
  const std::lock_guard lock(mutex_);
  PF_CHECK(error_.has_value());
  return error_.value_or(Error());
}

}  // namespace pageferry
