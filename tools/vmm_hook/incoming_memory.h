// IncomingMemory: memory of this VMM that waits for its pages: registered for missing pages in a userfaultfd that stays open here until
// nothing is missing. So a pager that dies leaves the guest waiting; whoever comes next gets a duplicate and goes on.
//
// Pages that the VMM gives back meanwhile are zeros for good: they are placed as zeros here, so that no pager can place anything else (a
// page that is there is never overwritten). What a pager had placed after the hole was made is taken away again before.
//
// Where it can be, the memory is registered for write protection as well, so that the guest's writes are known from its first page on
// (pager/restored_write_source.h). Then it stays registered when no page is missing any more, and HoleService answers for it.
//
// Thread rule: make_zero() and are_missing() any thread; the rest the hook's threads. Lifetime: the config outlives it, and the memory.
#pragma once

#include <atomic>
#include <mutex>
#include <optional>
#include <string>

#include "pager/dirty_bitmap.h"
#include "pager/hole_service.h"
#include "pager/page.h"
#include "pager/restored_write_source.h"
#include "tools/vmm_hook/hook_config.h"
#include "transport/io_buffer.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "transport/os/page_tables.h"

namespace pageferry {

class IncomingMemory {
 public:
  using Tracking = std::optional<RestoredWriteSource::Kind>;
  // `wanted`: how writes shall be tracked; tracking() says whether they are. Errors: invalid (pages are there already), unsupported (no
  // userfaultfd, not allowed, or not for this memory), busy, io.
  static Result<std::unique_ptr<IncomingMemory>> prepare(const HookConfig& config, Tracking wanted);
  ~IncomingMemory();
  IncomingMemory(const IncomingMemory&) = delete;
  IncomingMemory& operator=(const IncomingMemory&) = delete;

  Tracking tracking() const { return tracking_; }

  bool are_missing() const { return missing_.load(); }
  // For pagers; until close().
  int descriptor() const { return userfault_.get(); }

  // Every page is there: it ends waiting for them. A page that the VMM has just given back, and will report, may be missing for a moment:
  // it is waited for. Errors: vmm (a page is missing for longer; says which and where), io.
  Result<void> finish();
  // After finish(), on the thread that hands the descriptor out: the number may be another file's afterwards. Without tracking it is done.
  void close_if_done();
  // Adds the pages that are missing now: whoever asked before for written pages may read all others. Errors: io.
  Result<void> missing_into(DirtyBitmap& missing) const;
  // Bytes that are there, roughly: only to see whether they become more.
  std::uint64_t bytes_there() const;

  // Backing pages of one slot that were given back; nothing when no pages are missing. Errors: no_space, io.
  Result<void> make_zero(std::size_t slot, std::uint64_t offset_bytes, std::uint64_t bytes);

 private:
  explicit IncomingMemory(const HookConfig& config) : config_(&config) {}
  Result<void> register_all(Tracking tracking);
  Result<void> register_slot(std::size_t slot, std::uint64_t mode);
  Result<void> add_missing(std::size_t slot, DirtyBitmap& missing) const;
  Result<void> add_holes(std::size_t slot, DirtyBitmap& missing) const;
  Result<void> unregister_all();
  Result<void> check_untouched() const;
  // Offset of the first page in a slot, from `from` on, that is there or is not; nullopt: none.
  enum class Wanted : std::uint8_t { there, missing };
  Result<std::optional<std::uint64_t>> find(std::size_t slot, Wanted wanted,
                                            std::uint64_t from = 0) const;
  Result<std::optional<std::uint64_t>> find_in_file(std::size_t slot, Wanted wanted,
                                                    std::uint64_t from) const;
  Result<std::optional<std::uint64_t>> find_in_tables(std::size_t slot, Wanted wanted,
                                                      std::uint64_t from) const;
  Result<void> wait_until_whole(std::size_t slot, const Deadline& all_slots) const;
  std::int64_t place_zeros(std::uint64_t address, std::uint64_t bytes, std::uint64_t unit);
  Result<void> make_hole(std::size_t slot, std::uint64_t offset_bytes, std::uint64_t bytes) const;

  const HookConfig* config_;
  std::optional<PageTables> tables_;
  std::atomic<bool> missing_{true};
  std::mutex closing_;  // make_zero() against the end of the registration
  UniqueFd userfault_;
  Tracking tracking_;
  std::unique_ptr<HoleService> holes_;  // once nothing is missing, with tracking
  AlignedMemory zeros_;                 // the largest backing page of them; guarded by closing_
};

}  // namespace pageferry
