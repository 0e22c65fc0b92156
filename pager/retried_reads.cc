// Each read is in one of three states: in flight, waiting for its next attempt, or reported and not yet released. Only in-flight
// reads belong to the store. What fails may be a transfer error or a stale cache on the way, so the same bytes are read again.
//
// Invariants
//   R2: a ticket is reported exactly once, and its buffer is the caller's until release().
//
//   R3: the timer is armed whenever a read waits and none of what ready_fd() watches would ring otherwise.
#include "pager/retried_reads.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <utility>

namespace pageferry {
namespace {

constexpr int kRetryFactor = 4;

}  // namespace

Result<std::unique_ptr<RetriedReads>> RetriedReads::make(StorageFile& file, ReadBuffers buffers,
                                                         ReadRetries retries, const Clock& clock,
                                                         Check check) {
  std::unique_ptr<RetriedReads> reads(
      new RetriedReads(file, std::move(buffers), retries, clock, std::move(check)));
  PF_TRY(reads->set_up());
  return reads;
}

RetriedReads::RetriedReads(StorageFile& file, ReadBuffers buffers, ReadRetries retries,
                           const Clock& clock, Check check)
    : file_(file),
      buffers_(std::move(buffers)),
      retries_(retries),
      clock_(clock),
      check_(std::move(check)) {}

Result<void> RetriedReads::set_up() {
  timer_ = UniqueFd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!timer_.valid()) return syscall_error("timerfd_create", file_.name());
  ready_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!ready_.valid()) return syscall_error("epoll_create1", file_.name());
  PF_TRY(watch_fd(timer_.get(), file_.name()));
  return watch(file_);
}

Result<void> RetriedReads::watch_fd(int fd, const std::string& name) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (::epoll_ctl(ready_.get(), EPOLL_CTL_ADD, fd, &event) == 0) return {};
  return syscall_error("epoll_ctl", name);
}

Result<void> RetriedReads::watch(const StorageFile& another) {
  return watch_fd(another.completion_fd(), another.name());
}

void RetriedReads::abandon() {
  buffers_.demand->abandon();
  buffers_.prefetch->abandon();
}

Result<std::uint64_t> RetriedReads::start(PageRun run, ReadClass read_class, const Place& place) {
  IoBufferPool& pool = read_class == ReadClass::demand ? *buffers_.demand : *buffers_.prefetch;
  IoBuffer buffer = pool.take();
  if (!buffer) {
    return fail(Errc::busy,
                fmt::format("{}: all {} buffers are in use", file_.name(), pool.count()));
  }
  const std::uint64_t ticket = next_ticket_++;
  const auto entry = reads_.try_emplace(ticket).first;
  Read& read = entry->second;
  read.run = run;
  read.read_class = read_class;
  read.file = &place.file;
  read.offset = place.offset;
  read.buffer = std::move(buffer);
  read.bytes = read.buffer.bytes().first(bytes_of_pages(run.pages));
  if (Result<void> submitted = submit(ticket, read); !submitted) {
    reads_.erase(entry);
    return tl::make_unexpected(submitted.error());
  }
  return ticket;
}

std::uint64_t RetriedReads::answer(PageRun run, ReadClass read_class,
                                   std::span<const std::byte> bytes) {
  const std::uint64_t ticket = next_ticket_++;
  Read& read = reads_[ticket];
  read.run = run;
  read.read_class = read_class;
  read.bytes = bytes;
  answered_.push_back(ticket);
  if (answered_.size() == 1) set_timer();
  return ticket;
}

Result<void> RetriedReads::submit(std::uint64_t ticket, Read& read) {
  const std::span<std::byte> to = read.buffer.bytes().first(bytes_of_pages(read.run.pages));
  PF_TRY(read.file->submit_read(
      to, read.offset, ticket,
      read.read_class == ReadClass::demand ? IoPriority::demand : IoPriority::background));
  ++read.attempts;
  ++stats_.reads;
  stats_.bytes += to.size();
  read.state = Read::State::in_flight;
  return {};
}

void RetriedReads::settle(std::uint64_t ticket, Read& read, Result<void> transfer,
                          std::vector<ReadDone>& done) {
  const Result<void> outcome = check_(read.run, read.bytes, std::move(transfer), read.attempts);
  if (!outcome && read.attempts < retries_.attempts) {
    Nanoseconds delay = retries_.delay;
    for (unsigned i = 1; i < read.attempts; ++i) delay *= kRetryFactor;
    read.retry_at = clock_.now() + delay;
    read.state = Read::State::waiting;
    ++waiting_;
    return;
  }
  read.state = Read::State::reported;
  ReadDone report{ticket, read.run, read.read_class, read.bytes};
  if (!outcome) {
    ++stats_.given_up;
    report.bytes = tl::make_unexpected(outcome.error());
  }
  done.push_back(std::move(report));
}

void RetriedReads::note_done(IoDone one, std::vector<ReadDone>& done) {
  const auto found = reads_.find(one.tag);
  PF_CHECK(found != reads_.end());
  settle(one.tag, found->second, std::move(one.outcome), done);
}

void RetriedReads::restart_due(std::vector<ReadDone>& done) {
  // Demand first, also among the second attempts.
  for (const ReadClass wanted : {ReadClass::demand, ReadClass::prefetch}) {
    for (auto& [ticket, read] : reads_) {
      if (read.state != Read::State::waiting || read.read_class != wanted) continue;
      if (read.retry_at > clock_.now()) continue;
      --waiting_;
      if (Result<void> submitted = submit(ticket, read); !submitted) {
        ++read.attempts;
        settle(ticket, read, std::move(submitted), done);
      }
    }
  }
}

// For the next attempt, or at once when an answer waits to be fetched; disarmed, and what it rang before forgotten, when
// neither is.
void RetriedReads::set_timer() {
  Nanoseconds next = answered_.empty() ? Nanoseconds::max() : clock_.now();
  for (const auto& [ticket, read] : reads_) {
    if (read.state == Read::State::waiting) next = std::min(next, read.retry_at);
  }
  itimerspec when{};
  if (waiting_ > 0 || !answered_.empty()) {
    const Nanoseconds left = std::max(next - clock_.now(), Nanoseconds(1));
    when.it_value.tv_sec = left / Seconds(1);
    when.it_value.tv_nsec = (left % Seconds(1)).count();
  }
  PF_CHECK(::timerfd_settime(timer_.get(), 0, &when, nullptr) == 0);
}

void RetriedReads::finish_turn(std::vector<ReadDone>& done) {
  const bool timer_may_ring = waiting_ > 0 || !answered_.empty();
  for (const std::uint64_t ticket : answered_) {
    Read& read = reads_.at(ticket);
    read.state = Read::State::reported;
    done.push_back({ticket, read.run, read.read_class, read.bytes});
  }
  answered_.clear();
  if (waiting_ > 0) restart_due(done);
  if (timer_may_ring) set_timer();
}

void RetriedReads::release(std::uint64_t ticket) {
  const auto found = reads_.find(ticket);
  PF_CHECK(found != reads_.end() && found->second.state == Read::State::reported);
  reads_.erase(found);
}

}  // namespace pageferry
