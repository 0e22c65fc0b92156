// VmmDirtySource: a DirtySource by the VMM's own bitmap, for a VMM that knows by itself which pages were written: an emulator in
// its store instructions, or one that has wrapped KVM's log and its devices in one bitmap already. The best source where there is
// one, because the VMM's devices are in it. What its log leaves out is reported as with any other source (D2, D3).
//
// Thread rule: dirty_source.h; the log is called by the collecting thread only. Lifetime: layout and log outlive it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pager/dirty_source.h"

namespace pageferry {

// What the VMM brings.
class VmmDirtyLog {
 public:
  virtual ~VmmDirtyLog() = default;
  // From its return on every write is logged. Errors: unsupported, busy, vmm.
  virtual Result<void> start_log() = 0;
  // Sets in `words` the bits of the pages of this block (an index into the layout's blocks) that were written since the last
  // call (bit i % 64 of word i / 64 is page i), and logs them anew; per page in one step, or the other way round: log anew, then
  // say so. `words` comes with all bits 0. May block, e.g. to ask its vCPU threads. Errors: vmm.
  virtual Result<void> fetch_and_rearm(std::size_t block, std::span<std::uint64_t> words) = 0;
  // Errors: vmm.
  virtual Result<void> stop_log() = 0;
};

class VmmDirtySource final : public DirtySource {
 public:
  VmmDirtySource(const MemoryLayout& layout, VmmDirtyLog& log) : DirtySource(layout), log_(&log) {}
  ~VmmDirtySource() override { static_cast<void>(stop()); }

 private:
  Result<void> begin() override { return log_->start_log(); }
  Result<void> fetch(DirtyBitmap& dirty) override;
  Result<void> end() override { return log_->stop_log(); }

  VmmDirtyLog* log_;
  std::vector<std::uint64_t> words_;  // of one block
};

}  // namespace pageferry
