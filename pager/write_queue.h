// WriteQueue: turns blocks that come one at a time into few, large, asynchronous writes. Blocks
// that follow each other in the file are joined, up to one chunk; many writes are in flight; two
// writes to one place never are. Knows offsets, no pages and no format.
//
// The first error, of whatever operation, is final: every later call returns it.
//
// Thread rule: one thread. Lifetime: file, pool and cancel signal outlive the queue. The queue must
// be drained or abandoned before the pool is destroyed.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "pager/page_file_format.h"
#include "transport/cancel_signal.h"
#include "transport/io_buffer.h"
#include "transport/os/clock.h"
#include "transport/storage_file.h"

namespace pageferry {

// Blocks of different streams are joined apart from each other, so that appended and overwritten
// pages that alternate do not cut each other's runs.
enum class WriteStream : std::uint8_t { append, overwrite, map };
inline constexpr std::size_t kWriteStreams = 3;

struct WriteQueueStats {
  std::uint64_t bytes_submitted = 0;
  std::uint64_t zero_bytes = 0;  // by write_zeros, apart
  std::uint64_t writes = 0;
  Nanoseconds blocked{0};  // the caller waited for the store
  Nanoseconds busy{0};     // at least one write was in flight
};

class WriteQueue {
 public:
  // Uses every buffer that the pool has now; nobody else takes any.
  WriteQueue(StorageFile& file, IoBufferPool& pool, const CancelSignal& cancel, const Clock& clock);
  ~WriteQueue();
  WriteQueue(const WriteQueue&) = delete;
  WriteQueue& operator=(const WriteQueue&) = delete;

  // A place for one block that will be written at `offset`; to be filled before the next call on
  // the queue. May block until the store has caught up. `fresh`: nothing was ever written there, so
  // that no write can be in flight to it.
  enum class Place : std::uint8_t { fresh, rewritten };
  Result<FileBlock> stage(WriteStream stream, std::uint64_t offset, Place place);

  // Writes `bytes`, which stay where they are until the queue is drained (or the file destroyed) but may change meanwhile. May
  // block until the store has caught up: no more is in flight than the pool could hold. For long runs: what was staged before
  // is not joined with it.
  Result<void> write_lent(std::span<const std::byte> bytes, std::uint64_t offset, Place place);

  // Submits what was staged; does not wait for it.
  Result<void> flush();
  // flush(), then waits until nothing at all is in flight.
  Result<void> drain();

  // Writes `zeros` at `offset` in the background. `zeros` outlives the queue. Precondition:
  // can_start().
  Result<void> write_zeros(std::span<const std::byte> zeros, std::uint64_t offset);
  Result<void> wait_for_zeros();
  unsigned zeros_in_flight() const { return zeros_in_flight_; }

  // Space ahead; a store that has not that much left is not an error here (the write itself will
  // say so).
  Result<void> allocate(std::uint64_t offset, std::uint64_t length);
  // A sync in the background; at most one at a time is started, more are ignored.
  Result<void> start_sync();
  // drain(), then a sync, waited for.
  Result<void> sync();

  // Takes in what has finished; never blocks.
  Result<void> poll();
  // Waits for the deadline or a cancel, taking in what finishes.
  Result<void> pause_until(const Deadline& deadline);

  unsigned writes_in_flight() const { return writes_in_flight_; }
  bool can_start() const { return file_.in_flight() < file_.queue_depth(); }
  WriteQueueStats stats() const;

 private:
  struct Chunk {
    IoBuffer buffer;
    unsigned writes = 0;  // in flight from it
    bool open = false;    // a stream still fills it
  };
  struct Run {
    std::size_t chunk = kNoChunk;
    std::size_t used = 0;      // bytes of the chunk handed out
    std::size_t start = 0;     // the unsubmitted run: place in the chunk,
    std::size_t bytes = 0;     // length,
    std::uint64_t offset = 0;  // and place in the file
  };
  struct Write {
    std::uint64_t offset = 0;
    std::size_t bytes = 0;         // 0: idle
    std::size_t chunk = kNoChunk;  // or kZeros, kLent
  };
  static constexpr std::size_t kNoChunk = ~std::size_t{0};
  static constexpr std::size_t kZeros = kNoChunk - 1;
  static constexpr std::size_t kLent = kNoChunk - 2;

  Result<void> submit_run(Run& run);
  Result<void> open_chunk(Run& run);
  Result<void> wait_for_place(std::uint64_t offset, std::size_t bytes);
  Result<void> wait_some();
  Result<void> submit_write(std::span<const std::byte> bytes, std::uint64_t offset,
                            std::size_t chunk);
  Result<void> make_room();
  void settle(const IoDone& done);
  void release_if_unused(std::size_t chunk);
  Result<void> state() const;

  StorageFile& file_;
  IoBufferPool& pool_;
  const CancelSignal& cancel_;
  const Clock& clock_;
  std::optional<Error> failed_;
  std::vector<Chunk> chunks_;
  std::vector<std::size_t> idle_chunks_;
  std::array<Run, kWriteStreams> runs_;
  std::vector<Write> writes_;
  std::vector<std::size_t> idle_writes_;
  std::vector<IoDone> done_;
  unsigned writes_in_flight_ = 0;
  unsigned zeros_in_flight_ = 0;
  std::size_t lent_bytes_max_ = 0;
  std::size_t lent_bytes_in_flight_ = 0;
  bool sync_in_flight_ = false;
  WriteQueueStats stats_;
  Nanoseconds busy_since_{0};
};

}  // namespace pageferry
