// As PageFileReader without map and checksums: a read is in flight, waits for its next attempt, or is reported and not yet released.
#include "pager/memory_file_reader.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "pager/page_file_reader.h"
#include "transport/storage_wait.h"

namespace pageferry {
namespace {

constexpr int kRetryFactor = 4;
constexpr std::size_t kHolesMax = std::size_t{1} << 20;  // finding one takes about a microsecond

Result<MemoryLayout> layout_of_file(const StorageFile& file) {
  PF_ASSIGN(const std::uint64_t bytes, file.size());
  if (bytes == 0 || !is_page_aligned(bytes) || bytes > kMemoryBytesMax) {
    return fail(Errc::invalid,
                fmt::format("memory file {} has {} bytes, must be a multiple of {} in 1..{}",
                            file.name(), bytes, kPageSizeBytes, kMemoryBytesMax));
  }
  return MemoryLayout::make({RamBlock{.name = "memory", .length_bytes = bytes}});
}

}  // namespace

Result<std::vector<PageRun>> find_holes(const UniqueFd& file, std::uint64_t pages,
                                        const std::string& name) {
  std::vector<PageRun> holes;
  const auto end = static_cast<off_t>(bytes_of_pages(pages));
  off_t at = 0;
  while (at < end && holes.size() < kHolesMax) {
    const off_t hole = ::lseek(file.get(), at, SEEK_HOLE);
    if (hole < 0 && errno == EINVAL) return std::vector<PageRun>();
    if (hole < 0) return syscall_error("lseek", name);
    off_t data = hole >= end ? end : ::lseek(file.get(), hole, SEEK_DATA);
    if (data < 0 && errno != ENXIO) return syscall_error("lseek", name);
    if (data < 0 || data > end) data = end;
    // A page that is only partly a hole is read.
    const auto first = pages_of_bytes(static_cast<std::uint64_t>(hole) + kPageSizeBytes - 1);
    const auto last = pages_of_bytes(static_cast<std::uint64_t>(data));
    if (first < last) holes.push_back({.first = PageIndex{first}, .pages = last - first});
    if (data <= at) break;  // somebody writes to it
    at = data;
  }
  return holes;
}

Result<std::unique_ptr<MemoryFileReader>> MemoryFileReader::open(
    std::unique_ptr<StorageFile> file, const std::vector<PageRun>& holes,
    const MemoryFileReaderOptions& options, const Clock& clock) {
  PF_CHECK(options.demand_slots + options.prefetch_slots <= file->queue_depth());
  PF_ASSIGN(MemoryLayout layout, layout_of_file(*file));
  std::unique_ptr<MemoryFileReader> reader(
      new MemoryFileReader(std::move(file), std::move(layout), options, clock));
  for (const PageRun& hole : holes) {
    PF_CHECK(raw(hole.first) + hole.pages <= reader->layout_.pages());
    for (std::uint64_t i = 0; i < hole.pages; ++i) reader->holes_[raw(hole.first) + i] = true;
  }
  PF_TRY(reader->set_up());
  return reader;
}

MemoryFileReader::MemoryFileReader(std::unique_ptr<StorageFile> file, MemoryLayout layout,
                                   const MemoryFileReaderOptions& options, const Clock& clock)
    : options_(options),
      clock_(clock),
      layout_(std::move(layout)),
      holes_(layout_.pages()),
      file_(std::move(file)) {}

Result<void> MemoryFileReader::set_up() {
  PageFileReaderOptions staging;
  staging.read_bytes_max = options_.read_bytes_max;
  staging.demand_slots = options_.demand_slots;
  staging.prefetch_slots = options_.prefetch_slots;
  staging.tail_cache_bytes_max = 0;
  PF_ASSIGN(memory_, PageReadMemory::make(staging));
  timer_ = UniqueFd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!timer_.valid()) return syscall_error("timerfd_create", file_->name());
  ready_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!ready_.valid()) return syscall_error("epoll_create1", file_->name());
  for (const int fd : {file_->completion_fd(), timer_.get()}) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (::epoll_ctl(ready_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      return syscall_error("epoll_ctl", file_->name());
    }
  }
  return {};
}

MemoryFileReader::~MemoryFileReader() {
  const MonotonicClock real_clock;
  const WaitBounds bounds{nullptr, Deadline::after(real_clock, Seconds(1))};
  std::vector<IoDone> done;
  while (file_->in_flight() > 0 && wait_for_completions(*file_, bounds, done)) done.clear();
  if (file_->in_flight() == 0) return;
  memory_.demand->abandon();
  memory_.prefetch->abandon();
}

PageRun MemoryFileReader::contiguous_run(PageIndex page, std::uint64_t pages_max) const {
  PF_CHECK(!is_zero(page));
  const std::uint64_t most =
      std::min({pages_max, layout_.pages() - raw(page), pages_of_bytes(options_.read_bytes_max)});
  std::uint64_t pages = 1;
  while (pages < most && !is_zero(page + pages)) ++pages;
  return {.first = page, .pages = pages};
}

Result<std::uint64_t> MemoryFileReader::start_read(PageRun run, ReadClass read_class) {
  PF_CHECK(run.pages > 0 && raw(run.first) < layout_.pages());
  if (contiguous_run(run.first, run.pages).pages != run.pages) {
    return fail(Errc::invalid, fmt::format("{}: {} pages from page {} do not lie together",
                                           file_->name(), run.pages, raw(run.first)));
  }
  IoBufferPool& pool = read_class == ReadClass::demand ? *memory_.demand : *memory_.prefetch;
  IoBuffer buffer = pool.take();
  if (!buffer) {
    return fail(Errc::busy,
                fmt::format("{}: all {} buffers are in use", file_->name(), pool.count()));
  }
  const std::uint64_t ticket = next_ticket_++;
  const auto place = reads_.try_emplace(ticket).first;
  place->second.run = run;
  place->second.read_class = read_class;
  place->second.buffer = std::move(buffer);
  auto submitted = submit(ticket, place->second);
  if (submitted) return ticket;
  reads_.erase(place);
  return tl::make_unexpected(std::move(submitted).error());
}

Result<void> MemoryFileReader::submit(std::uint64_t ticket, Read& read) {
  const IoPriority priority =
      read.read_class == ReadClass::demand ? IoPriority::demand : IoPriority::background;
  PF_TRY(file_->submit_read(read.bytes(), bytes_of_pages(raw(read.run.first)), ticket, priority));
  ++read.attempts;
  read.state = Read::State::in_flight;
  return {};
}

// Reports the read, or lets it wait for its next attempt.
void MemoryFileReader::settle(std::uint64_t ticket, Read& read, Result<void> outcome,
                              std::vector<ReadDone>& done) {
  if (!outcome && read.attempts < options_.attempts) {
    Nanoseconds delay = options_.retry_delay;
    for (unsigned i = 1; i < read.attempts; ++i) delay *= kRetryFactor;
    read.retry_at = clock_.now() + delay;
    read.state = Read::State::waiting;
    ++waiting_;
    return;
  }
  read.state = Read::State::reported;
  ReadDone report{ticket, read.run, read.read_class, std::span<const std::byte>(read.bytes())};
  if (!outcome) {
    report.bytes =
        with_context(outcome.error(),
                     fmt::format("page {} (file offset {}), after {} reads", raw(read.run.first),
                                 bytes_of_pages(raw(read.run.first)), read.attempts));
  }
  done.push_back(std::move(report));
}

void MemoryFileReader::restart_due(std::vector<ReadDone>& done) {
  for (auto& [ticket, read] : reads_) {
    if (read.state != Read::State::waiting || read.retry_at > clock_.now()) continue;
    --waiting_;
    if (Result<void> submitted = submit(ticket, read); !submitted) {
      ++read.attempts;
      settle(ticket, read, std::move(submitted), done);
    }
  }
}

// For the next attempt; disarmed, and what it rang before forgotten, when none waits.
void MemoryFileReader::set_timer() {
  itimerspec when{};
  if (waiting_ > 0) {
    Nanoseconds next = Nanoseconds::max();
    for (const auto& [ticket, read] : reads_) {
      if (read.state == Read::State::waiting) next = std::min(next, read.retry_at);
    }
    const Nanoseconds left = std::max(next - clock_.now(), Nanoseconds(1));
    when.it_value.tv_sec = left / Seconds(1);
    when.it_value.tv_nsec = (left % Seconds(1)).count();
  }
  PF_CHECK(::timerfd_settime(timer_.get(), 0, &when, nullptr) == 0);
}

std::vector<ReadDone> MemoryFileReader::poll() {
  std::vector<ReadDone> done;
  std::vector<IoDone> finished;
  file_->reap(finished);
  const bool waited = waiting_ > 0;
  for (IoDone& one : finished) {
    const auto found = reads_.find(one.tag);
    PF_CHECK(found != reads_.end());
    settle(one.tag, found->second, std::move(one.outcome), done);
  }
  if (waiting_ > 0) restart_due(done);
  if (waited || waiting_ > 0) set_timer();
  return done;
}

void MemoryFileReader::release(std::uint64_t ticket) {
  const auto found = reads_.find(ticket);
  PF_CHECK(found != reads_.end() && found->second.state == Read::State::reported);
  reads_.erase(found);
}

}  // namespace pageferry
