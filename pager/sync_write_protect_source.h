// SyncWriteProtectSource: a DirtySource by userfaultfd write protection, for kernels that have no asynchronous one (Linux 5.19
// to 6.6; Debian 12 has 6.1). The first write to a protected page stops the writer; a thread of ours notes the page, takes the
// protection off and wakes the writer. Each such write costs two changes of thread, so a VMM prefers anything else that it has.
//
//   writer --write--> kernel --message--> our thread: note page, UFFDIO_WRITEPROTECT off --wakes--> writer
//   collect_into:     take the noted pages, UFFDIO_WRITEPROTECT on
//
// Sees and does not see what AsyncWriteProtectSource does, with two more limits:
//   - a vCPU or device thread that holds a lock of the VMM may wait here: the thread that calls collect_into() or stop() must not
//     write guest memory itself, and who pauses vCPUs must not wait for one with signals only
//   - before Linux 6.4 a page that is not there cannot be protected. So all pages are read into being beforehand: the zero page
//     for anonymous memory, but real, empty pages for a file that has holes
//
// Needs /dev/userfaultfd, or CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1 (start() says unsupported).
//
// Thread rule and lifetime: dirty_source.h. One thread of its own between start() and stop(), which takes no signals and touches
// no guest memory.
#pragma once

#include <atomic>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "pager/dirty_source.h"
#include "pager/write_protected_memory.h"
#include "transport/os/fd.h"

namespace pageferry {

class SyncWriteProtectSource final : public DirtySource {
 public:
  // How a page that is not there is protected: marked in the page tables where the kernel can; or populated, as before 6.4.
  enum class AbsentPages : std::uint8_t { marked_if_possible, populated };

  // `block_addresses`: where each block of the layout begins in this process.
  SyncWriteProtectSource(const MemoryLayout& layout, std::vector<std::uint64_t> block_addresses,
                         AbsentPages absent_pages = AbsentPages::marked_if_possible);
  ~SyncWriteProtectSource() override { static_cast<void>(stop()); }

  void discard(PageRun run) override;

 private:
  Result<void> begin() override;
  Result<void> fetch(DirtyBitmap& dirty) override;
  Result<void> end() override;
  Result<void> fetch_all(DirtyBitmap& dirty);
  Result<void> protect(PageRun run) const;
  void serve();
  Result<void> serve_messages();
  Result<void> let_write(std::uint64_t address);

  std::vector<std::uint64_t> block_addresses_;
  AbsentPages absent_pages_;
  bool populate_ = false;                       // decided by begin()
  std::optional<WriteProtectedMemory> memory_;  // while started
  UniqueFd stop_event_;                         // the same
  std::thread thread_;                          // the same
  ReportedPages unprotected_;                   // pages that may be written without a message (I1)
  std::mutex protection_;                       // I2
  std::optional<Error> failure_;                // of the thread; guarded by protection_
};

}  // namespace pageferry
