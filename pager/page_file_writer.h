// PageFileWriter: the PageSink that makes a page file. Uncommitted, the file is scrap, and every
// reader says so; committed, it is complete and durable, and never written again.
//
// Where a page goes: while the guest runs, to its home slot, given out when the page is first
// stored (so zero pages leave no gaps, and the first pass is one sequential stream) and overwritten
// by later passes, which keeps the file no larger than the guest. From begin_blackout() on, to the
// tail: one sequential stream again, into space that was reserved and written over with zeros
// before, because that is when the guest waits. docs/page-file-format.md has the layout.
//
// With a base (use_base()) every page is in the file from the beginning, and lies in that base until it is
// put: a first pass that puts only what was written since leaves the rest where it is.
//
// put_page costs one copy, one zero check and one crc32c; it blocks only while every staging chunk
// is being written, while the bandwidth limit says so, or for a write to the same slot that is
// still in flight.
//
// Thread rule: one thread, the capture's; cancel() and stats() from any.
// Lifetime: the clock outlives the writer. Destroying a writer whose store hangs takes up to
// close_wait and that of the file, then leaks the staging memory that the store may still read; the
// file stays uncommitted.
//
// A store can hang in a system call of the caller's own thread (io_submit, fallocate): only over a
// ThreadedFile does cancel() always end the wait.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "pager/base_plan.h"
#include "pager/page_file_format.h"
#include "pager/page_map.h"
#include "pager/page_sink.h"
#include "pager/write_queue.h"
#include "transport/cancel_signal.h"
#include "transport/io_buffer.h"
#include "transport/os/clock.h"
#include "transport/storage_file.h"

namespace pageferry {

struct PageFileWriterOptions {
  std::uint64_t tail_bytes_max = std::uint64_t{256}
                                 << 20;  // reserved for the blackout; more is written slower
  std::uint64_t bandwidth_limit_bytes_per_s = 0;   // while the guest runs; 0 = none
  std::size_t chunk_bytes = std::size_t{1} << 20;  // largest single write
  std::size_t chunks = 24;                         // staging memory is chunks * chunk_bytes
  std::uint64_t map_bytes_max = std::uint64_t{16}
                                << 30;  // bound on the map in memory: a guest of 4 TiB
  Milliseconds close_wait{1000};
};

// Random, from the kernel. A writer is given them, so that a golden file can be made again byte for
// byte.
struct PageFileIds {
  Id128 file_id{};
  Id128 commit_id{};
  static Result<PageFileIds> random();
};

struct CommitInfo {
  CommitRecord record;             // record.commit_id names the image
  std::uint64_t memory_bytes = 0;  // of the guest
};

struct PageFileWriterStats {
  std::uint64_t put_pages = 0;            // put_page calls, with zero pages found
  std::uint64_t zero_pages = 0;           // put_zero calls and zero pages found
  std::uint64_t home_pages = 0;           // written to home slots
  std::uint64_t rewritten_pages = 0;      // of them, again
  std::uint64_t tail_pages = 0;           // written while the guest was stopped
  std::uint64_t tail_overflow_pages = 0;  // of them, beyond the reserved tail (slower)
  std::uint64_t tail_prewritten_bytes = 0;
  std::uint64_t base_pages = 0;     // with content, that lie in bases and were not put
  std::uint64_t delta_entries = 0;  // at commit
  std::uint64_t bytes_written = 0;  // submitted: pages, map, delta; without prewriting
  std::uint64_t writes = 0;
  std::uint64_t file_bytes = 0;  // end of what is used
  std::uint64_t blocked_ns = 0;  // put_page and commit waited for the store
  // while at least one write was in flight; 0 = nothing measured yet
  std::uint64_t write_bytes_per_s = 0;
};

class PageFileWriter final : public PageSink {
 public:
  // `file`: new and empty (AioFile::create), with queue_depth >= 8. Errc::invalid names the wrong
  // option.
  static Result<std::unique_ptr<PageFileWriter>> make(std::unique_ptr<StorageFile> file,
                                                      const PageFileIds& ids,
                                                      const PageFileWriterOptions& options,
                                                      const Clock& clock);
  ~PageFileWriter() override;

  // Reserves header, map and tail (Errc::no_space when they do not fit) and writes the header:
  // blocks for that long.
  Result<void> begin(const MemoryLayout& layout) override;
  // After begin(), before the first page. `base`: an image of the same layout, `plan` made of it; the caller
  // answers for it that every page which differs from the image will be put, and that the plan's bases lie
  // beside the file, durable. Writes header and map anew: blocks for that long. Errors: invalid (too
  // late, or another layout), the store's.
  Result<void> use_base(const PageFileImage& base, const BasePlan& plan);
  // Starts writing what the last pass changed in the map, and a sync, in the background. Their
  // errors come up later.
  void begin_pass(std::uint32_t pass) override;
  // Waits for the writes of the pass, and of the map blocks in which it changed much, and writes zeros over as
  // much of the tail as will be needed (not with a bandwidth limit: it has its own pace).
  Result<void> prepare_blackout(std::uint64_t remaining_bytes) override;
  Result<void> begin_blackout() override;
  Result<void> put_page(PageIndex page, PageBytes bytes) override;
  Result<void> put_zero(PageIndex page) override;
  // While the guest runs, written straight from where they lie; in the blackout as put_page.
  Result<void> put_lent_pages(PageRun run, std::span<const std::byte> bytes) override;

  // The guest is stopped and every page was put: makes all durable, then the commit record. Once.
  // After an error the file is scrap and every further call returns that error.
  Result<CommitInfo> finish_and_commit();

  // After finish_and_commit(): closes the file and gives back the memory for its pages. Of the other calls only stats() is allowed
  // then. Waits for what is still in flight, options.close_wait at most. May be repeated.
  void close();

  // From any thread: a call that waits for the store, and every later one, returns Errc::canceled
  // at once.
  void cancel() { cancel_.cancel(); }
  // From any thread: map blocks that were written anew since the last call, for a reader that may have read them before
  // (PageMapPreload::forget). Their writes may still be in flight. A hint: after very many only the first are named.
  std::vector<MapBlockRun> take_rewritten_map_blocks();
  // From any thread; counters of one moment, not exactly of the same.
  PageFileWriterStats stats() const;

 private:
  enum class State : std::uint8_t { fresh, brownout, blackout, committed };
  // From this many changes on, a map block written in place is smaller than its entries in the delta.
  static constexpr unsigned kMapChangesDense = kDeltaEntriesPerBlock;
  // What the map block on the store lacks.
  struct MapBlockState {
    std::uint64_t changed[4] = {};  // one bit for each entry
    std::uint32_t crc = 0;          // as last written
    bool written = false;
    unsigned changes() const;
  };
  // Of one delta block, as it fills.
  struct DeltaEntries {
    std::array<DeltaEntry, kDeltaEntriesPerBlock> list{};
    std::size_t count = 0;
  };
  struct Counters {
    std::atomic<std::uint64_t> put_pages{0}, zero_pages{0}, home_pages{0}, rewritten_pages{0},
        tail_pages{0}, tail_overflow_pages{0}, tail_prewritten_bytes{0}, base_pages{0},
        delta_entries{0}, bytes_written{0}, zero_bytes{0}, writes{0}, file_bytes{0}, blocked_ns{0},
        busy_ns{0};
  };

  PageFileWriter(std::unique_ptr<StorageFile> file, std::unique_ptr<IoBufferPool> pool,
                 const PageFileIds& ids, const PageFileWriterOptions& options, const Clock& clock);

  Result<void> check_page(PageIndex page) const;
  // Bytes of lent memory whose places in the file follow each other too.
  struct LentRun {
    std::span<const std::byte> bytes;
    std::uint64_t offset = 0;
    WriteQueue::Place place{};
  };
  static void count(std::atomic<std::uint64_t>& counter, std::uint64_t amount) {
    counter.store(counter.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
  }
  Result<WriteQueue::Place> give_home(MapEntry& entry);
  Result<FileBlock> place_at_home(MapEntry& entry);
  Result<void> put_lent_page(PageIndex page, PageBytes bytes, LentRun& run);
  Result<void> write_lent(LentRun& run);
  Result<FileBlock> place_in_tail(MapEntry& entry);
  void record(PageIndex page, MapEntry entry);
  bool is_in_tail(const MapEntry& entry) const;
  Result<void> write_head();
  Result<void> reserve_slots();
  std::uint64_t prewrite_end() const;
  Result<void> prewrite_some();
  Result<void> prewrite_piece();
  Result<void> throttle();
  Result<void> advance_map(PageIndex page);
  Result<void> write_map_blocks(std::uint64_t first, std::uint64_t end, unsigned changes_min);
  Result<void> write_map_block(std::uint64_t number);
  void note_rewritten_map_block(std::uint64_t number);
  Result<void> write_index(CommitRecord& record);
  std::uint64_t changed_entries() const;
  Result<void> reserve_index(std::uint64_t bytes);
  Result<void> write_map_checksums();
  Result<void> write_delta(CommitRecord& record);
  Result<void> write_delta_block(CommitRecord& record, std::uint32_t number, DeltaEntries& entries);
  Result<void> write_commit(const CommitRecord& record);
  CommitRecord make_record() const;
  std::uint64_t used_bytes() const;
  void publish();

  // Constant after begin().
  PageFileIds ids_;
  PageFileWriterOptions options_;
  const Clock& clock_;
  MemoryLayout layout_;
  PageFileHeader header_;
  // Destroyed from the last to the first: the queue, the file (which waits for what is in flight), the memory.
  CancelSignal cancel_;
  std::unique_ptr<IoBufferPool> pool_;
  std::thread populating_;
  IoBuffer zeros_;
  std::unique_ptr<StorageFile> file_;
  std::unique_ptr<WriteQueue> queue_;

  State state_ = State::fresh;
  std::optional<Error> failed_;  // from begin_pass, which cannot return it
  std::uint32_t version_ = 1;    // of the pass
  std::uint32_t version_max_ = 0;
  PageMap map_;
  std::vector<MapBlockState> map_states_;
  std::uint64_t map_cursor_ = 0;  // first map block that this pass has not left behind
  std::mutex rewritten_mutex_;
  std::vector<MapBlockRun> rewritten_map_blocks_;
  std::uint64_t stored_pages_ = 0;
  std::uint64_t stored_tail_pages_ = 0;
  std::uint64_t stored_base_pages_ = 0;
  std::uint64_t slots_ = 0;
  std::uint64_t slots_reserved_bytes_ = 0;  // from slots_offset
  std::uint64_t tail_next_ = 0;             // offset of the next tail block
  std::uint64_t tail_end_ = 0;              // end of the space that tail_next_ may use
  std::uint64_t prewritten_ = 0;            // bytes of the tail, from its start
  bool all_populated_ = false;              // the staging memory
  Nanoseconds throttle_next_{0};
  Counters counters_;
};

}  // namespace pageferry
