// HookProgress: how far a pager is, in a page of memory of its own that others look into while it works. The pager makes it, gives a
// descriptor to the hook (HookClient::share_progress), and the hook hands read-only ones to observers (`pageferry status --watch`), without
// ever looking into it. So nobody waits for anybody: not the pager for those that look, and not they for a pager that is stopped.
//
// No locks: each figure is one atomic word, and a count before and after a change tells a reader that it saw a half one. Whoever reads
// must expect anything: the words are copied and bounded, and mean nothing but what is shown to people.
//
// Thread rule: write() one thread; readers any number, anywhere.
#pragma once

#include <cstdint>
#include <memory>

#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "vmstate/shared_mapping.h"

namespace pageferry {

enum class HookPhase : std::uint8_t {
  idle,
  brownout,
  blackout,
  released,
  loading,
  restoring,
  resident
};

struct HookProgress {
  HookPhase phase = HookPhase::idle;
  std::uint64_t epoch = 0;
  std::uint64_t pager_pid = 0;
  std::uint64_t started_ns = 0;  // CLOCK_MONOTONIC of this host
  std::uint64_t updated_ns = 0;
  std::uint64_t pages_total = 0;
  std::uint64_t pages_done = 0;  // brownout: put in this pass; restoring: there
  std::uint64_t pages_left = 0;
  std::uint64_t pass = 0;
  std::uint64_t bytes_moved = 0;  // all passes together
  std::uint64_t bytes_per_s = 0;
  std::uint64_t dirty_pages_per_s = 0;
  std::uint64_t faults = 0;
  std::uint64_t fault_p50_us = 0;
  std::uint64_t fault_p99_us = 0;
  std::uint64_t fault_max_us = 0;
  std::uint64_t prefetched_pages = 0;
  std::uint64_t removed_pages = 0;
  friend bool operator==(const HookProgress&, const HookProgress&) = default;
};

inline constexpr std::uint64_t kHookProgressBytes = 4096;

class HookProgressWriter {
 public:
  // Errors: io, no_space.
  static Result<HookProgressWriter> make();
  int descriptor() const { return memory_.get(); }
  void write(const HookProgress& progress);

 private:
  HookProgressWriter(UniqueFd memory, SharedMapping mapping)
      : memory_(std::move(memory)), mapping_(std::move(mapping)) {}
  UniqueFd memory_;
  SharedMapping mapping_;
};

class HookProgressReader {
 public:
  // A descriptor that somebody else made. Errors: invalid (not what a writer makes), version.
  static Result<HookProgressReader> open(const UniqueFd& memory);
  // Never blocks. Errors: busy (it changes all the time, or its writer ended in the middle: look again later), invalid.
  Result<HookProgress> read() const;

 private:
  explicit HookProgressReader(SharedMapping mapping) : mapping_(std::move(mapping)) {}
  SharedMapping mapping_;
};

}  // namespace pageferry
