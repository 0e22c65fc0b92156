// Each read is in one of three states: in flight, waiting for its next attempt, or reported and not
// yet released. Only in-flight reads belong to the store. A checksum that fails may be a transfer
// error or a stale cache on the way, so the same bytes are read again, later and later; what still
// fails then is reported and never handed out.
//
// Invariants
//   R1: no byte is handed out whose page's crc32c was not checked after the transfer that brought
//   it. R2: a ticket is reported exactly once, and its buffer is the caller's until release(). R3:
//   the timer is armed whenever a read waits and none of what ready_fd() watches would ring
//   otherwise.
#include "pager/page_file_reader.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <algorithm>

#include "transport/crc32c.h"

namespace pageferry {
namespace {

constexpr int kRetryFactor = 4;
constexpr unsigned kAttemptsMax = 10;

Result<void> check_options(const PageFileReaderOptions& options, unsigned queue_depth) {
  if (options.read_bytes_max == 0 || !is_page_aligned(options.read_bytes_max) ||
      options.read_bytes_max > kIoBytesMax) {
    return fail(Errc::invalid, fmt::format("reads of {} bytes: a multiple of {} up to {}",
                                           options.read_bytes_max, kPageSizeBytes, kIoBytesMax));
  }
  if (options.demand_slots == 0 || options.prefetch_slots == 0 ||
      options.demand_slots + options.prefetch_slots > queue_depth) {
    return fail(
        Errc::invalid,
        fmt::format("{} demand and {} prefetch slots: at least 1 each, together at most the "
                    "queue depth {}",
                    options.demand_slots, options.prefetch_slots, queue_depth));
  }
  if (options.attempts == 0 || options.attempts > kAttemptsMax) {
    return fail(Errc::invalid,
                fmt::format("{} attempts, limit 1..{}", options.attempts, kAttemptsMax));
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<PageFileReader>> PageFileReader::open(std::unique_ptr<StorageFile> file,
                                                             const PageFileReaderOptions& options,
                                                             const Clock& clock,
                                                             const WaitBounds& bounds,
                                                             PageReadPreparation prepared) {
  PF_TRY(check_options(options, file->queue_depth()));
  PF_ASSIGN(PageFileImage image,
            PageFileImage::load(*file, options.map_bytes_max, bounds, std::move(prepared.map)));
  std::unique_ptr<PageFileReader> reader(
      new PageFileReader(std::move(file), std::move(image), options, clock));
  if (!prepared.memory.demand) {
    PF_ASSIGN(prepared.memory, PageReadMemory::make(options));
  }
  PF_TRY(reader->set_up(std::move(prepared.memory)));
  return reader;
}

PageFileReader::PageFileReader(std::unique_ptr<StorageFile> file, PageFileImage image,
                               const PageFileReaderOptions& options, const Clock& clock)
    : options_(options), clock_(clock), image_(std::move(image)), file_(std::move(file)) {}

Result<void> PageFileReader::set_up(PageReadMemory memory) {
  demand_pool_ = std::move(memory.demand);
  prefetch_pool_ = std::move(memory.prefetch);
  tail_ = TailCache::make(image_.header, image_.record, std::move(memory.tail));
  tail_.start_reads(*file_);
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

PageFileReader::~PageFileReader() {
  std::vector<IoDone> done;
  const MonotonicClock real_clock;
  const WaitBounds bounds{nullptr, Deadline::after(real_clock, Seconds(1))};
  while (file_->in_flight() > 0) {
    done.clear();
    if (!wait_for_completions(*file_, bounds, done)) break;
    for (const IoDone& one : done) {
      if ((one.tag & TailCache::kTagBit) != 0) tail_.note_done(one);
    }
  }
  if (file_->in_flight() > 0) {
    demand_pool_->abandon();
    prefetch_pool_->abandon();
  }
}

PageRun PageFileReader::contiguous_run(PageIndex page, std::uint64_t pages_max) const {
  const MapEntry first = image_.map.get(page);
  PF_CHECK(!first.is_zero());
  const RamBlock& block = image_.layout.blocks()[image_.layout.block_of(page)];
  const std::uint64_t in_block = (block.first_page + block.pages()) - page;
  const std::uint64_t limit =
      std::min({pages_max, in_block, pages_of_bytes(options_.read_bytes_max)});
  std::uint64_t pages = 1;
  while (pages < limit && image_.map.get(page + pages).location == first.location + pages) ++pages;
  return {page, pages};
}

Result<std::uint64_t> PageFileReader::start_read(PageRun run, ReadClass read_class) {
  if (run.pages == 0 || raw(run.first) >= image_.layout.pages() ||
      run.pages > image_.layout.pages() - raw(run.first) || is_zero(run.first) ||
      contiguous_run(run.first, run.pages).pages != run.pages) {
    return fail(Errc::invalid,
                fmt::format("{}: {} pages from page {} do not lie together in the file",
                            file_->name(), run.pages, raw(run.first)));
  }
  if (answer_from_tail(run, read_class)) return answered_.back();
  if (read_class == ReadClass::prefetch && tail_.expects(image_.map.get(run.first).location)) {
    return fail(Errc::busy, fmt::format("{}: the tail is being read", file_->name()));
  }
  IoBufferPool& pool = read_class == ReadClass::demand ? *demand_pool_ : *prefetch_pool_;
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
  place->second.bytes = place->second.buffer.bytes().first(bytes_of_pages(run.pages));
  if (Result<void> submitted = submit(ticket, place->second); !submitted) {
    reads_.erase(place);
    return tl::make_unexpected(submitted.error());
  }
  return ticket;
}

// True when the run is in the tail cache, proved: its ticket is the last of answered_, and poll() will report it.
bool PageFileReader::answer_from_tail(PageRun run, ReadClass read_class) {
  const auto bytes = tail_.find(image_.map.get(run.first).location, run.pages);
  if (!bytes || !check_pages(run, *bytes, 0)) return false;
  const std::uint64_t ticket = next_ticket_++;
  Read& read = reads_[ticket];
  read.run = run;
  read.read_class = read_class;
  read.bytes = *bytes;
  answered_.push_back(ticket);
  ++stats_.from_tail_cache;
  if (answered_.size() == 1) set_timer();
  return true;
}

Result<void> PageFileReader::submit(std::uint64_t ticket, Read& read) {
  const std::uint64_t offset = image_.map.get(read.run.first).location * kFileBlockBytes;
  PF_TRY(file_->submit_read(
      read.buffer.bytes().first(bytes_of_pages(read.run.pages)), offset, ticket,
      read.read_class == ReadClass::demand ? IoPriority::demand : IoPriority::background));
  ++read.attempts;
  ++stats_.reads;
  stats_.bytes += bytes_of_pages(read.run.pages);
  read.state = Read::State::in_flight;
  return {};
}

std::string PageFileReader::describe(PageIndex page) const {
  const RamBlock& block = image_.layout.blocks()[image_.layout.block_of(page)];
  return fmt::format("page {} (RAM block '{}' offset {:#x}, file offset {})", raw(page), block.name,
                     bytes_of_pages(page - block.first_page),
                     image_.map.get(page).location * kFileBlockBytes);
}

Result<void> PageFileReader::check_pages(PageRun run, std::span<const std::byte> bytes,
                                         unsigned attempts) const {
  for (std::uint64_t i = 0; i < run.pages; ++i) {
    const PageIndex page = run.first + i;
    const std::uint32_t expected = image_.map.get(page).crc;
    const std::uint32_t computed = crc32c(bytes.subspan(bytes_of_pages(i), kPageSizeBytes));
    if (computed == expected) continue;
    return fail(Errc::corrupt,
                fmt::format("{}: {}: checksum {:#010x}, stored was {:#010x}, after {} reads",
                            file_->name(), describe(page), computed, expected, attempts));
  }
  return {};
}

void PageFileReader::settle(std::uint64_t ticket, Read& read, Result<void> outcome,
                            std::vector<ReadDone>& done) {
  if (outcome) {
    outcome = check_pages(read.run, read.bytes, read.attempts);
    if (!outcome) ++stats_.checksum_failures;
  } else {
    ++stats_.io_failures;
    outcome = with_context(outcome.error(), describe(read.run.first));
  }
  if (!outcome && read.attempts < options_.attempts) {
    Nanoseconds delay = options_.retry_delay;
    for (unsigned i = 1; i < read.attempts; ++i) delay *= kRetryFactor;
    read.retry_at = clock_.now() + delay;
    read.state = Read::State::waiting;
    ++waiting_;
    return;
  }
  read.state = Read::State::reported;
  ReadDone report{ticket, read.run, read.read_class, std::span<const std::byte>()};
  if (outcome) {
    report.bytes = read.bytes;
  } else {
    ++stats_.given_up;
    report.bytes = tl::make_unexpected(outcome.error());
  }
  done.push_back(std::move(report));
}

void PageFileReader::restart_due(std::vector<ReadDone>& done) {
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
void PageFileReader::set_timer() {
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

std::vector<ReadDone> PageFileReader::poll() {
  std::vector<ReadDone> done;
  io_done_.clear();
  file_->reap(io_done_);
  for (IoDone& one : io_done_) {
    if ((one.tag & TailCache::kTagBit) != 0) {
      tail_.note_done(one);
      tail_.start_reads(*file_);
      continue;
    }
    const auto found = reads_.find(one.tag);
    PF_CHECK(found != reads_.end());
    settle(one.tag, found->second, std::move(one.outcome), done);
  }
  const bool timer_may_ring = waiting_ > 0 || !answered_.empty();
  for (const std::uint64_t ticket : answered_) {
    Read& read = reads_.at(ticket);
    read.state = Read::State::reported;
    done.push_back({ticket, read.run, read.read_class, read.bytes});
  }
  answered_.clear();
  if (waiting_ > 0) restart_due(done);
  if (timer_may_ring) set_timer();
  return done;
}

void PageFileReader::release(std::uint64_t ticket) {
  const auto found = reads_.find(ticket);
  PF_CHECK(found != reads_.end() && found->second.state == Read::State::reported);
  reads_.erase(found);
}

}  // namespace pageferry
