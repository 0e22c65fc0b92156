// Chunks and runs. Each stream fills one chunk of the pool at a time; the part of it that is
// adjacent in the file is the run, and becomes one write when the next block does not follow, the
// chunk is full, or somebody flushes:
//
//      chunk   | run, written | run, written | open run ->|         |
//                offset 4096    offset 90112   offset 200704
//
// A chunk returns to the pool when its stream has left it and all of its writes are done.
//
// Invariants
//   Q1: a write is in `writes_` from its submission to its completion, and no two in there overlap:
//       stage() of a place that is not fresh first waits until nothing in flight or staged covers
//       it. The scan is linear over the queue depth (128 comparisons), cheaper than any index at
//       this size.
//   Q2: failed_ is set once and never cleared. A completion that failed after it is ignored: the
//       first cause is told.
#include "pager/write_queue.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>

#include "transport/storage_wait.h"

namespace pageferry {
namespace {

// Tags above every index of writes_.
constexpr std::uint64_t kSyncTag = std::uint64_t{1} << 32;
constexpr std::uint64_t kAllocateTag = kSyncTag + 1;

}  // namespace

WriteQueue::WriteQueue(StorageFile& file, IoBufferPool& pool, const CancelSignal& cancel,
                       const Clock& clock)
    : file_(file), pool_(pool), cancel_(cancel), clock_(clock) {
  // One stream each must be able to hold a chunk while another is being written.
  PF_CHECK(pool.available() > kWriteStreams);
  lent_bytes_max_ = pool.available() * pool.buffer_bytes();
  chunks_.resize(pool.available());
  writes_.resize(file.queue_depth());
  for (std::size_t i = chunks_.size(); i > 0; --i) idle_chunks_.push_back(i - 1);
  for (std::size_t i = writes_.size(); i > 0; --i) idle_writes_.push_back(i - 1);
}

WriteQueue::~WriteQueue() = default;

Result<void> WriteQueue::state() const {
  if (failed_) return tl::make_unexpected(*failed_);
  if (cancel_.canceled()) return fail(Errc::canceled, fmt::format("{}: canceled", file_.name()));
  return {};
}

Result<FileBlock> WriteQueue::stage(WriteStream stream, std::uint64_t offset, Place place) {
  PF_TRY(state());
  Run& run = runs_[static_cast<std::size_t>(stream)];
  if (place == Place::rewritten) PF_TRY(wait_for_place(offset, kFileBlockBytes));
  if (run.bytes != 0 && run.offset + run.bytes != offset) PF_TRY(submit_run(run));
  if (run.chunk == kNoChunk || run.used == pool_.buffer_bytes()) {
    PF_TRY(submit_run(run));
    PF_TRY(open_chunk(run));
  }
  if (run.bytes == 0) {
    run.start = run.used;
    run.offset = offset;
  }
  const auto bytes = chunks_[run.chunk].buffer.bytes();
  const FileBlock block(bytes.data() + run.used, kFileBlockBytes);
  run.used += kFileBlockBytes;
  run.bytes += kFileBlockBytes;
  return block;
}

Result<void> WriteQueue::open_chunk(Run& run) {
  if (run.chunk != kNoChunk) {
    const std::size_t left = run.chunk;
    run = Run{};
    chunks_[left].open = false;
    release_if_unused(left);
  }
  while (idle_chunks_.empty()) {
    // The streams hold fewer chunks than there are, so the others are being written.
    PF_CHECK(writes_in_flight_ > 0);
    PF_TRY(wait_some());
  }
  const std::size_t chunk = idle_chunks_.back();
  idle_chunks_.pop_back();
  chunks_[chunk].buffer = pool_.take();
  PF_CHECK(static_cast<bool>(chunks_[chunk].buffer));
  chunks_[chunk].open = true;
  run.chunk = chunk;
  return {};
}

Result<void> WriteQueue::wait_for_place(std::uint64_t offset, std::size_t bytes) {
  const auto overlaps = [offset, bytes](const auto& write) {
    return write.bytes != 0 && offset < write.offset + write.bytes && write.offset < offset + bytes;
  };
  for (Run& run : runs_) {
    if (overlaps(run)) PF_TRY(submit_run(run));
  }
  while (std::any_of(writes_.begin(), writes_.end(), overlaps)) PF_TRY(wait_some());
  return {};
}

Result<void> WriteQueue::write_lent(std::span<const std::byte> bytes, std::uint64_t offset,
                                    Place place) {
  PF_TRY(state());
  if (place == Place::rewritten) PF_TRY(wait_for_place(offset, bytes.size()));
  PF_CHECK(bytes.size() <= lent_bytes_max_);
  while (lent_bytes_in_flight_ + bytes.size() > lent_bytes_max_) PF_TRY(wait_some());
  PF_TRY(submit_write(bytes, offset, kLent));
  lent_bytes_in_flight_ += bytes.size();
  return {};
}

Result<void> WriteQueue::submit_run(Run& run) {
  if (run.bytes == 0) return {};
  const auto bytes = chunks_[run.chunk].buffer.bytes().subspan(run.start, run.bytes);
  PF_TRY(submit_write(bytes, run.offset, run.chunk));
  run.bytes = 0;
  return {};
}

Result<void> WriteQueue::make_room() {
  PF_TRY(poll());
  while (!can_start()) PF_TRY(wait_some());
  return {};
}

Result<void> WriteQueue::submit_write(std::span<const std::byte> bytes, std::uint64_t offset,
                                      std::size_t chunk) {
  PF_TRY(make_room());
  const std::size_t index = idle_writes_.back();
  if (Result<void> submitted = file_.submit_write(bytes, offset, index, IoPriority::normal);
      !submitted) {
    failed_ = submitted.error();
    return submitted;
  }
  idle_writes_.pop_back();
  writes_[index] = {offset, bytes.size(), chunk};
  if (chunk == kZeros) {
    stats_.zero_bytes += bytes.size();
  } else {
    if (chunk != kLent) ++chunks_[chunk].writes;
    stats_.bytes_submitted += bytes.size();
    ++stats_.writes;
  }
  if (writes_in_flight_++ == 0) busy_since_ = clock_.now();
  return {};
}

Result<void> WriteQueue::write_zeros(std::span<const std::byte> zeros, std::uint64_t offset) {
  PF_TRY(state());
  PF_TRY(submit_write(zeros, offset, kZeros));
  ++zeros_in_flight_;
  return {};
}

Result<void> WriteQueue::wait_for_zeros() {
  while (zeros_in_flight_ > 0) PF_TRY(wait_some());
  return state();
}

Result<void> WriteQueue::flush() {
  PF_TRY(state());
  for (Run& run : runs_) PF_TRY(submit_run(run));
  return poll();
}

Result<void> WriteQueue::drain() {
  PF_TRY(flush());
  while (file_.in_flight() > 0) PF_TRY(wait_some());
  return state();
}

Result<void> WriteQueue::allocate(std::uint64_t offset, std::uint64_t length) {
  PF_TRY(state());
  PF_TRY(make_room());
  Result<void> submitted = file_.submit_allocate(offset, length, kAllocateTag);
  if (!submitted) failed_ = submitted.error();
  return submitted;
}

Result<void> WriteQueue::start_sync() {
  PF_TRY(state());
  if (sync_in_flight_) return {};
  PF_TRY(make_room());
  Result<void> submitted = file_.submit_sync(kSyncTag);
  if (!submitted) failed_ = submitted.error();
  sync_in_flight_ = submitted.has_value();
  return submitted;
}

Result<void> WriteQueue::sync() {
  PF_TRY(drain());
  PF_TRY(start_sync());
  return drain();
}

Result<void> WriteQueue::wait_some() {
  PF_TRY(state());
  const Nanoseconds start = clock_.now();
  done_.clear();
  Result<void> waited = wait_for_completions(file_, {&cancel_, Deadline::never()}, done_);
  stats_.blocked += clock_.now() - start;
  for (const IoDone& done : done_) settle(done);
  PF_TRY(std::move(waited));
  return state();
}

Result<void> WriteQueue::poll() {
  done_.clear();
  file_.reap(done_);
  for (const IoDone& done : done_) settle(done);
  return state();
}

Result<void> WriteQueue::pause_until(const Deadline& deadline) {
  while (!deadline.passed()) {
    PF_TRY(poll());
    pollfd waiting[2] = {{file_.completion_fd(), POLLIN, 0}, {cancel_.fd(), POLLIN, 0}};
    if (::poll(waiting, 2, deadline.poll_timeout_ms()) < 0 && errno != EINTR) {
      return syscall_error("poll", file_.name());
    }
  }
  return state();
}

void WriteQueue::settle(const IoDone& done) {
  const bool no_room_ahead =
      done.tag == kAllocateTag && !done.outcome && done.outcome.error().code == Errc::no_space;
  if (!done.outcome && !no_room_ahead && !failed_) failed_ = done.outcome.error();
  if (done.tag == kSyncTag) sync_in_flight_ = false;
  if (done.kind != IoKind::write) return;
  Write& write = writes_[done.tag];
  PF_CHECK(write.bytes != 0);
  const std::size_t chunk = write.chunk;
  if (chunk == kLent) lent_bytes_in_flight_ -= write.bytes;
  write = Write{};
  idle_writes_.push_back(done.tag);
  if (--writes_in_flight_ == 0) stats_.busy += clock_.now() - busy_since_;
  if (chunk == kZeros) --zeros_in_flight_;
  if (chunk == kZeros || chunk == kLent) return;
  --chunks_[chunk].writes;
  release_if_unused(chunk);
}

void WriteQueue::release_if_unused(std::size_t index) {
  Chunk& chunk = chunks_[index];
  if (chunk.open || chunk.writes != 0) return;
  chunk.buffer.reset();
  idle_chunks_.push_back(index);
}

WriteQueueStats WriteQueue::stats() const {
  WriteQueueStats now = stats_;
  if (writes_in_flight_ > 0) now.busy += clock_.now() - busy_since_;
  return now;
}

}  // namespace pageferry
