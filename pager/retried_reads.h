// RetriedReads: reads of page runs that a PageSupply has under way in its file, or its files. Each has a buffer, is checked by
// its owner when it is here, and is made again, later and later, a bounded number of times when it failed or brought the wrong
// bytes.
//
//   start() --> in flight --note_done()--> checked --> reported by finish_turn() --> release()
//                  ^                          | wrong
//                  +---- waits its turn <-----+
//
// Demand and prefetch have buffers of their own, and go to the store with their own I/O priority.
//
// The owner reaps the files (it may have reads of its own there): finished reads with tickets of start() go to note_done().
//
// Thread rule: one thread. Lifetime: files and clock outlive its use; the files are destroyed before it, since the store may write into
// the buffers until then.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pager/page_supply.h"
#include "transport/io_buffer.h"
#include "transport/os/clock.h"
#include "transport/os/fd.h"
#include "transport/storage_file.h"

namespace pageferry {

struct ReadRetries {
  unsigned attempts = 1;  // reads of one run before it is given up
  Milliseconds delay{0};  // before the second attempt; four times as long each time
};

struct ReadBuffers {
  std::unique_ptr<IoBufferPool> demand;
  std::unique_ptr<IoBufferPool> prefetch;
};

struct RetriedReadStats {
  std::uint64_t reads = 0;
  std::uint64_t bytes = 0;
  std::uint64_t given_up = 0;
};

class RetriedReads {
 public:
  // `transfer`: whether the bytes came; `attempts`: how often they were read, this time included. The result is what becomes of it:
  // success, or why it is read again or, the last time, reported.
  using Check = std::function<Result<void>(PageRun run, std::span<const std::byte> bytes,
                                           Result<void> transfer, unsigned attempts)>;

  // Errors: io (no descriptor).
  static Result<std::unique_ptr<RetriedReads>> make(StorageFile& file, ReadBuffers buffers,
                                                    ReadRetries retries, const Clock& clock,
                                                    Check check);

  // One more file that reads may be started in. Errors: io.
  Result<void> watch(const StorageFile& another);

  // The bytes of `run` lie together from `offset` of that file on, and fit into a buffer. Errors: busy (no buffer), the file's.
  struct Place {
    StorageFile& file;
    std::uint64_t offset = 0;
  };
  Result<std::uint64_t> start(PageRun run, ReadClass read_class, const Place& place);
  // A read that needs none: reported by the next finish_turn(). `bytes` stay valid until release().
  std::uint64_t answer(PageRun run, ReadClass read_class, std::span<const std::byte> bytes);

  // As PageSupply. ready_fd() also rings when a read waits for its next attempt, or an answer for being fetched.
  int ready_fd() const { return ready_.get(); }
  void note_done(IoDone one, std::vector<ReadDone>& done);
  void finish_turn(std::vector<ReadDone>& done);
  void release(std::uint64_t ticket);

  const RetriedReadStats& stats() const { return stats_; }
  // Leaks the buffers: the store may still write into them.
  void abandon();

 private:
  struct Read {
    PageRun run;
    ReadClass read_class{};
    StorageFile* file = nullptr;  // none for an answer
    std::uint64_t offset = 0;
    IoBuffer buffer;                     // empty for an answer
    std::span<const std::byte> bytes{};  // where they are or will be
    unsigned attempts = 0;
    Nanoseconds retry_at{0};
    enum class State : std::uint8_t { in_flight, waiting, reported } state = State::in_flight;
  };

  RetriedReads(StorageFile& file, ReadBuffers buffers, ReadRetries retries, const Clock& clock,
               Check check);
  Result<void> set_up();
  Result<void> watch_fd(int fd, const std::string& name);
  Result<void> submit(std::uint64_t ticket, Read& read);
  // Reports the read, or lets it wait for its next attempt.
  void settle(std::uint64_t ticket, Read& read, Result<void> transfer, std::vector<ReadDone>& done);
  void restart_due(std::vector<ReadDone>& done);
  void set_timer();

  StorageFile& file_;
  ReadBuffers buffers_;
  ReadRetries retries_;
  const Clock& clock_;
  Check check_;
  std::map<std::uint64_t, Read> reads_;  // by ticket
  std::vector<std::uint64_t> answered_;  // tickets, not reported yet
  UniqueFd timer_;
  UniqueFd ready_;  // epoll over the file's completions and the timer
  std::uint64_t next_ticket_ = 1;
  std::size_t waiting_ = 0;
  RetriedReadStats stats_;
};

}  // namespace pageferry
