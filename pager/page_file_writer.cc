// The writer's policy: which version a page gets, and when map blocks are written. Which block it
// goes to is in page_file_placement.cc, the end (delta, commit) in page_file_commit.cc; staging,
// joining and waiting are WriteQueue's.
//
// Map blocks: QEMU sends each pass in ascending page order, so the blocks that the first pass has
// left behind are final for a while: they are written 1 MiB at a time on the way (4 MiB per GiB of
// guest, 0.4 % of the pass). Later passes are written at the next begin_pass. What changed after
// that is written as the delta: for scattered pages that is far less than their map blocks.
//
// Invariants
//   W1: an entry differs from its block on the store only if its bit in `changed` is set or the
//   block was never written. W2: two stored versions of one page never share a number: version =
//   max(pass, last version + 1). W3: after begin_blackout() no home slot and no map block that was
//   written before is written again, except blocks with
//       many changes, once, right then.
//   W4: the commit block stays zero until everything else is durable.
#include "pager/page_file_writer.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "pager/page_copy.h"
#include "transport/crc32c.h"
#include "transport/os/signals_blocked.h"
#include "transport/storage_wait.h"

namespace pageferry {
namespace {

constexpr unsigned kQueueDepthMin = 8;
constexpr std::size_t kChunksMin = 8;
// Map blocks left behind are written when this many are together (1 MiB).
constexpr std::uint64_t kMapBatchBlocks = 256;
constexpr std::size_t kChunksPopulated = 11;
// More places than this are no longer worth a hint.
constexpr std::size_t kRewrittenRunsMax = 1024;
// A limited writer may be ahead of its rate by this much time, so that it need not sleep for each
// page.
constexpr Nanoseconds kThrottleBurst = Milliseconds(5);

Result<void> fill_random(Id128& id) {
  std::size_t filled = 0;
  while (filled < id.size()) {
    const ssize_t got = ::getrandom(id.data() + filled, id.size() - filled, 0);
    if (got < 0 && errno != EINTR) return syscall_error("getrandom", "for a file id");
    if (got > 0) filled += static_cast<std::size_t>(got);
  }
  return {};
}

}  // namespace

Result<PageFileIds> PageFileIds::random() {
  PageFileIds ids;
  PF_TRY(fill_random(ids.file_id));
  PF_TRY(fill_random(ids.commit_id));
  return ids;
}

unsigned PageFileWriter::MapBlockState::changes() const {
  unsigned count = 0;
  for (std::uint64_t word : changed) count += static_cast<unsigned>(std::popcount(word));
  return count;
}

Result<std::unique_ptr<PageFileWriter>> PageFileWriter::make(std::unique_ptr<StorageFile> file,
                                                             const PageFileIds& ids,
                                                             const PageFileWriterOptions& options,
                                                             const Clock& clock) {
  if (file->queue_depth() < kQueueDepthMin) {
    return fail(Errc::invalid, fmt::format("{}: queue depth {}, a page file needs {}", file->name(),
                                           file->queue_depth(), kQueueDepthMin));
  }
  if (options.chunks < kChunksMin || options.chunk_bytes > kIoBytesMax ||
      kSectionAlignmentBytes % options.chunk_bytes != 0) {
    return fail(
        Errc::invalid,
        fmt::format("{} staging chunks of {} bytes: at least {}, whose size divides {}",
                    options.chunks, options.chunk_bytes, kChunksMin, kSectionAlignmentBytes));
  }
  if (options.tail_bytes_max > kFileBytesMax / 4) {
    return fail(Errc::invalid, fmt::format("tail of {} bytes, limit {}", options.tail_bytes_max,
                                           kFileBytesMax / 4));
  }
  // One more chunk holds the zeros.
  PF_ASSIGN(std::unique_ptr<IoBufferPool> pool,
            IoBufferPool::make(options.chunk_bytes, options.chunks + 1));
  return std::unique_ptr<PageFileWriter>(
      new PageFileWriter(std::move(file), std::move(pool), ids, options, clock));
}

PageFileWriter::PageFileWriter(std::unique_ptr<StorageFile> file,
                               std::unique_ptr<IoBufferPool> pool, const PageFileIds& ids,
                               const PageFileWriterOptions& options, const Clock& clock)
    : ids_(ids), options_(options), clock_(clock), pool_(std::move(pool)), file_(std::move(file)) {
  // Beside what else there is to prepare: memory that the kernel has to find and clear. A store that is
  // as fast as the stream needs no more than this; the rest comes when it is used.
  {
    const SignalsBlocked for_the_thread;
    populating_ = std::thread([pool = pool_.get()] { pool->populate(kChunksPopulated); });
  }
  zeros_ = pool_->take();
  queue_ = std::make_unique<WriteQueue>(*file_, *pool_, cancel_, clock_);
}

PageFileWriter::~PageFileWriter() {
  close();
}

void PageFileWriter::close() {
  if (!file_) return;
  populating_.join();
  const MonotonicClock real_clock;
  const WaitBounds bounds{nullptr, Deadline::after(real_clock, options_.close_wait)};
  std::vector<IoDone> done;
  while (file_->in_flight() > 0) {
    if (!wait_for_completions(*file_, bounds, done)) break;
  }
  // Still being read by the store: never to be unmapped and used for something else.
  if (file_->in_flight() > 0) pool_->abandon();
  queue_.reset();
  file_.reset();
  zeros_ = IoBuffer();
  pool_.reset();
}

Result<void> PageFileWriter::begin(const MemoryLayout& layout) {
  if (state_ != State::fresh) return fail(Errc::invalid, "page file: begin() called twice");
  layout_ = layout;
  header_ = plan_page_file(ids_.file_id, layout, options_.tail_bytes_max);
  const std::uint64_t map_bytes = header_.map_blocks() * kFileBlockBytes;
  if (map_bytes > options_.map_bytes_max) {
    return fail(Errc::invalid,
                fmt::format("{}: a guest of {} bytes needs a map of {} bytes, limit {}",
                            file_->name(), layout.bytes(), map_bytes, options_.map_bytes_max));
  }
  PF_ASSIGN(map_, PageMap::make(layout.pages()));
  map_states_.assign(map_.blocks(), {});
  tail_next_ = header_.tail_offset;
  tail_end_ = header_.slots_offset;
  PF_TRY(write_head());
  state_ = State::brownout;
  publish();
  return {};
}

Result<void> PageFileWriter::write_head() {
  // The one reservation that must succeed: a store without room for it is refused before the guest
  // notices anything.
  PF_TRY(file_->submit_allocate(0, header_.slots_offset, 0));
  std::vector<IoDone> done;
  PF_TRY(wait_for_completions(*file_, {&cancel_, Deadline::never()}, done));
  PF_TRY(std::move(done.front().outcome));
  // A file system that cannot reserve has not grown the file either; the map may be all that is ever written before.
  PF_ASSIGN(const FileBlock last,
            queue_->stage(WriteStream::append, header_.slots_offset - kFileBlockBytes,
                          WriteQueue::Place::fresh));
  std::fill(last.begin(), last.end(), std::byte{0});
  PF_ASSIGN(const FileBlock head,
            queue_->stage(WriteStream::append, kHeaderOffset, WriteQueue::Place::fresh));
  encode_header(header_, head);
  PF_ASSIGN(const FileBlock commit,
            queue_->stage(WriteStream::append, kCommitOffset, WriteQueue::Place::fresh));
  std::fill(commit.begin(), commit.end(), std::byte{0});
  const std::vector<std::byte> table = encode_layout(layout_);
  for (std::size_t at = 0; at < table.size(); at += kFileBlockBytes) {
    PF_ASSIGN(const FileBlock block,
              queue_->stage(WriteStream::append, kLayoutOffset + at, WriteQueue::Place::fresh));
    const std::size_t bytes = std::min(kFileBlockBytes, table.size() - at);
    std::fill(block.begin(), block.end(), std::byte{0});
    std::memcpy(block.data(), table.data() + at, bytes);
  }
  PF_TRY(queue_->drain());
  return reserve_slots();
}

void PageFileWriter::begin_pass(std::uint32_t pass) {
  if (state_ != State::brownout || failed_) return;
  version_ = std::max(version_, pass);
  const auto start_pass = [this]() -> Result<void> {
    PF_TRY(write_map_blocks(0, map_.blocks(), 1));
    PF_TRY(queue_->flush());
    map_cursor_ = 0;
    if (counters_.put_pages.load(std::memory_order_relaxed) == 0) return {};
    return queue_->start_sync();
  };
  if (Result<void> started = pass > 1 ? start_pass() : Result<void>(); !started) {
    failed_ = started.error();
  }
  publish();
}

Result<void> PageFileWriter::begin_blackout() {
  PF_TRY(check_page(PageIndex{0}));
  if (state_ != State::brownout)
    return fail(Errc::invalid, "page file: begin_blackout() out of turn");
  state_ = State::blackout;
  version_ = std::max(version_, version_max_) + 1;
  PF_TRY(write_map_blocks(0, map_.blocks(), kMapChangesDense));
  PF_TRY(queue_->flush());
  PF_TRY(queue_->wait_for_zeros());
  publish();
  return {};
}

Result<void> PageFileWriter::check_page(PageIndex page) const {
  if (failed_) return tl::make_unexpected(*failed_);
  if (cancel_.canceled()) return fail(Errc::canceled, fmt::format("{}: canceled", file_->name()));
  if (state_ == State::fresh) return fail(Errc::invalid, "page file: pages before begin()");
  if (state_ == State::committed) {
    return fail(Errc::invalid, fmt::format("{} is committed: never written again", file_->name()));
  }
  if (raw(page) >= layout_.pages()) {
    return fail(Errc::invalid, fmt::format("{}: page {} of a guest with {} pages", file_->name(),
                                           raw(page), layout_.pages()));
  }
  return {};
}

Result<void> PageFileWriter::put_zero(PageIndex page) {
  PF_TRY(check_page(page));
  MapEntry entry = map_.get(page);
  count(counters_.zero_pages, 1);
  const std::uint64_t slot = entry.base() == 0 ? entry.block() : 0;
  entry.location = slot | kLocationZero;
  entry.crc = 0;
  record(page, entry);
  return advance_map(page);
}

Result<void> PageFileWriter::put_page(PageIndex page, PageBytes bytes) {
  count(counters_.put_pages, 1);
  if (is_zero_page(bytes)) return put_zero(page);
  PF_TRY(check_page(page));
  MapEntry entry = map_.get(page);
  PF_ASSIGN(const FileBlock block,
            state_ == State::blackout ? place_in_tail(entry) : place_at_home(entry));
  copy_page_past_caches(block, bytes);
  entry.crc = crc32c(bytes);
  record(page, entry);
  if (state_ == State::blackout) return {};
  PF_TRY(advance_map(page));
  return throttle();
}

void PageFileWriter::record(PageIndex page, MapEntry entry) {
  entry.version = std::max(version_, entry.version + 1);
  version_max_ = std::max(version_max_, entry.version);
  const MapEntry old = map_.get(page);
  stored_pages_ -= old.is_zero() ? 0U : 1U;
  stored_pages_ += entry.is_zero() ? 0U : 1U;
  stored_tail_pages_ -= is_in_tail(old) ? 1U : 0U;
  stored_tail_pages_ += is_in_tail(entry) ? 1U : 0U;
  stored_base_pages_ -= old.base() != 0 ? 1U : 0U;
  map_.set(page, entry);
  const std::uint64_t index = raw(page) % kMapEntriesPerBlock;
  map_states_[raw(page) / kMapEntriesPerBlock].changed[index / 64] |= std::uint64_t{1}
                                                                      << (index % 64);
}

// In the first pass, writes the map blocks that the pass has left behind; in every one, lets the
// store do something useful.
Result<void> PageFileWriter::advance_map(PageIndex page) {
  if (state_ != State::brownout) return {};
  const std::uint64_t block = raw(page) / kMapEntriesPerBlock;
  if (block < map_cursor_) return {};
  if (block < map_cursor_ + kMapBatchBlocks) return prewrite_some();
  const std::uint64_t first = map_cursor_;
  map_cursor_ = block - block % kMapBatchBlocks;
  publish();
  // Over a base all of them were written before, and what the first pass changes is written behind it as ever.
  if (!header_.bases.empty() && version_ == 1) return write_map_blocks(first, map_cursor_, 1);
  // Each by itself: what QEMU counts as a second pass may begin in the middle of the first.
  bool wrote = false;
  for (std::uint64_t number = first; number < map_cursor_; ++number) {
    if (map_states_[number].written || map_states_[number].changes() == 0) continue;
    PF_TRY(write_map_block(number));
    wrote = true;
  }
  return wrote ? Result<void>() : prewrite_some();
}

// The first pass wants the store for its pages. A guest whose blackout needs more than the usual
// tail is one that takes several passes.
Result<void> PageFileWriter::throttle() {
  if (options_.bandwidth_limit_bytes_per_s == 0) return {};
  const double page_ns = 1e9 * static_cast<double>(kPageSizeBytes) /
                         static_cast<double>(options_.bandwidth_limit_bytes_per_s);
  const Nanoseconds now = clock_.now();
  throttle_next_ = std::max(throttle_next_, now - kThrottleBurst) +
                   Nanoseconds(static_cast<std::int64_t>(page_ns));
  if (throttle_next_ <= now) return {};
  return queue_->pause_until(Deadline::after(clock_, throttle_next_ - now));
}

Result<void> PageFileWriter::write_map_blocks(std::uint64_t first, std::uint64_t end,
                                              unsigned changes_min) {
  for (std::uint64_t number = first; number < end; ++number) {
    const MapBlockState& state = map_states_[number];
    // A block that was never written must be in the end; before, it is worth a write only when it says something.
    const bool owed = !state.written && state_ == State::blackout;
    if (owed || state.changes() >= changes_min) PF_TRY(write_map_block(number));
  }
  return {};
}

Result<void> PageFileWriter::write_map_block(std::uint64_t number) {
  MapBlockState& state = map_states_[number];
  const auto place = state.written ? WriteQueue::Place::rewritten : WriteQueue::Place::fresh;
  PF_ASSIGN(const FileBlock block,
            queue_->stage(WriteStream::map, header_.map_offset + number * kFileBlockBytes, place));
  const ConstFileBlock from = std::as_const(map_).block(number);
  std::memcpy(block.data(), from.data(), from.size());
  state.crc = seal_map_block(ids_.file_id, number, block);
  if (state.written) note_rewritten_map_block(number);
  state.written = true;
  std::fill(std::begin(state.changed), std::end(state.changed), 0);
  return {};
}

void PageFileWriter::note_rewritten_map_block(std::uint64_t number) {
  const std::lock_guard lock(rewritten_mutex_);
  std::vector<MapBlockRun>& runs = rewritten_map_blocks_;
  if (!runs.empty() && runs.back().first + runs.back().blocks == number) {
    ++runs.back().blocks;
  } else if (runs.size() < kRewrittenRunsMax) {
    runs.push_back({.first = number, .blocks = 1});
  }
}

std::vector<MapBlockRun> PageFileWriter::take_rewritten_map_blocks() {
  const std::lock_guard lock(rewritten_mutex_);
  return std::exchange(rewritten_map_blocks_, {});
}

void PageFileWriter::publish() {
  const WriteQueueStats now = queue_->stats();
  const auto as_ns = [](Nanoseconds time) { return static_cast<std::uint64_t>(time.count()); };
  counters_.bytes_written.store(now.bytes_submitted, std::memory_order_relaxed);
  counters_.writes.store(now.writes, std::memory_order_relaxed);
  counters_.blocked_ns.store(as_ns(now.blocked), std::memory_order_relaxed);
  counters_.busy_ns.store(as_ns(now.busy), std::memory_order_relaxed);
  counters_.zero_bytes.store(now.zero_bytes, std::memory_order_relaxed);
  counters_.file_bytes.store(used_bytes(), std::memory_order_relaxed);
  counters_.base_pages.store(stored_base_pages_, std::memory_order_relaxed);
}

PageFileWriterStats PageFileWriter::stats() const {
  const auto get = [](const std::atomic<std::uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  PageFileWriterStats s;
  s.put_pages = get(counters_.put_pages);
  s.zero_pages = get(counters_.zero_pages);
  s.home_pages = get(counters_.home_pages);
  s.rewritten_pages = get(counters_.rewritten_pages);
  s.tail_pages = get(counters_.tail_pages);
  s.tail_overflow_pages = get(counters_.tail_overflow_pages);
  s.tail_prewritten_bytes = get(counters_.tail_prewritten_bytes);
  s.base_pages = get(counters_.base_pages);
  s.delta_entries = get(counters_.delta_entries);
  s.bytes_written = get(counters_.bytes_written);
  s.writes = get(counters_.writes);
  s.file_bytes = get(counters_.file_bytes);
  s.blocked_ns = get(counters_.blocked_ns);
  const std::uint64_t busy_ns = get(counters_.busy_ns);
  if (busy_ns != 0) {
    const std::uint64_t moved = s.bytes_written + get(counters_.zero_bytes);
    s.write_bytes_per_s =
        static_cast<std::uint64_t>(static_cast<double>(moved) * 1e9 / static_cast<double>(busy_ns));
  }
  return s;
}

}  // namespace pageferry
