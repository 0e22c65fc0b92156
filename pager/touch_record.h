// TouchRecord: which pages a guest touched first after a restore, in that order: what the next restore of the same VM prefetches first
// (PrefetchOrder::recorded). Kept on the store as a small file (docs/touch-record-format.md); where, is the caller's business.
//
// Only a hint: a wrong or missing record costs time, never a page. So whoever cannot decode one goes on without.
//
// Thread rule: a value, one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page.h"
#include "transport/os/error.h"

namespace pageferry {

// Bounds what a restore keeps of it in memory, and the file: 12 bytes a run, 3 MiB.
inline constexpr std::size_t kTouchRunsMax = std::size_t{1} << 18;
inline constexpr std::size_t kTouchRecordBytesMax = kTouchRunsMax * 12 + 64;

class TouchRecord {
 public:
  // Behind what is there; a run that continues the last one makes it longer. Ignored when the record is full.
  void note(PageRun run);

  // In the order of their first touch. May name a page twice; the later mention says nothing.
  const std::vector<PageRun>& runs() const { return runs_; }
  bool empty() const { return runs_.empty(); }

  std::vector<std::byte> encode(const MemoryLayout& layout) const;
  // Errors: corrupt (checksum, truncated), version, invalid (of another layout: names or sizes of blocks differ; a run outside it; more
  // than kTouchRunsMax).
  static Result<TouchRecord> decode(std::span<const std::byte> bytes, const MemoryLayout& layout);

  friend bool operator==(const TouchRecord&, const TouchRecord&) = default;

 private:
  std::vector<PageRun> runs_;
};

}  // namespace pageferry
