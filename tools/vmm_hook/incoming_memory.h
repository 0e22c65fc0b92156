// IncomingMemory: memory of this VMM that waits for its pages: registered for missing pages in a userfaultfd that stays open here until
// nothing is missing. So a pager that dies leaves the guest waiting; whoever comes next gets a duplicate and goes on.
//
// Pages that the VMM gives back meanwhile are zeros for good: they are placed as zeros here, so that no pager can place anything else (a
// page that is there is never overwritten). What a pager had placed after the hole was made is taken away again before.
//
// Thread rule: make_zero() and are_missing() any thread; the rest the hook's threads. Lifetime: the config outlives it, and the memory.
#pragma once

#include <atomic>
#include <mutex>
#include <optional>
#include <string>

#include "pager/page.h"
#include "tools/vmm_hook/hook_config.h"
#include "transport/io_buffer.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "transport/os/page_tables.h"

namespace pageferry {

class IncomingMemory {
 public:
  // Errors: invalid (pages are there already), unsupported (no userfaultfd, not allowed, or not for this memory), busy, io.
  static Result<std::unique_ptr<IncomingMemory>> prepare(const HookConfig& config);

  bool are_missing() const { return missing_.load(); }
  // For pagers; until close().
  int descriptor() const { return userfault_.get(); }

  // Every page is there: it ends waiting for them. Errors: vmm (pages are missing; says which and where), io.
  Result<void> finish();
  // After finish(), on the thread that hands the descriptor out: the number may be another file's afterwards.
  void close();
  // Bytes that are there, roughly: only to see whether they become more.
  std::uint64_t bytes_there() const;

  // Backing pages of one slot that were given back; nothing when no pages are missing. Errors: no_space, io.
  Result<void> make_zero(std::size_t slot, std::uint64_t offset_bytes, std::uint64_t bytes);

 private:
  explicit IncomingMemory(const HookConfig& config) : config_(&config) {}
  Result<void> register_slot(std::size_t slot);
  Result<void> check_untouched() const;
  // Offset of the first page in a slot that is there or is not; nullopt: none.
  enum class Wanted : std::uint8_t { there, missing };
  Result<std::optional<std::uint64_t>> find(std::size_t slot, Wanted wanted) const;
  Result<std::optional<std::uint64_t>> find_in_file(std::size_t slot, Wanted wanted) const;
  Result<std::optional<std::uint64_t>> find_in_tables(std::size_t slot, Wanted wanted) const;
  std::int64_t place_zeros(std::uint64_t address, std::uint64_t bytes, std::uint64_t unit);
  Result<void> make_hole(std::size_t slot, std::uint64_t offset_bytes, std::uint64_t bytes) const;

  const HookConfig* config_;
  std::optional<PageTables> tables_;
  std::atomic<bool> missing_{true};
  std::mutex closing_;  // make_zero() against the end of the registration
  UniqueFd userfault_;
  AlignedMemory zeros_;  // the largest backing page of them; guarded by closing_
};

}  // namespace pageferry
