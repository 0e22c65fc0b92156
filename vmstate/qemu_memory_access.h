// QemuMemoryAccess: the way into the memory of a destination QEMU that knows nothing of us. QEMU's postcopy opens a
// userfaultfd for the pages that it waits for; a duplicate of it lets us place pages ourselves (UserfaultOutlet), where the
// stream would take them through a socket, a thread of QEMU's and three copies. The stream stays: it carries the devices, and
// its end tells QEMU that every page is there.
//
// QEMU does not count pages that it did not place itself. Two things follow, and this file's users keep to them:
//   - no page goes through the stream any more once one has been placed directly: QEMU would place it a second time and fail;
//   - postcopy-preempt stays off: with it, QEMU waits at the end until every page it asked for came through the stream.
//
// Needs a QEMU that says where its RAM blocks are (`info ramblock`, 8.2 and later), and the right to trace it (see
// transport/os/process_descriptors.h).
//
// Thread rule: one thread at a time. A value; owns a pidfd.
#pragma once

#include <cstdint>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/sent_map.h"
#include "transport/host_identity.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "transport/os/page_tables.h"
#include "vmstate/qemu_ram_blocks.h"

namespace pageferry {

class QemuMemoryAccess {
 public:
  // Errors: unsupported (it cannot be done with this QEMU, kernel or user; the message says which), gone.
  static Result<QemuMemoryAccess> probe(int qemu_pid, const MemoryLayout& layout,
                                        const std::vector<QemuRamBlock>& blocks);

  // Into a process whose blocks are known from before (qemu_memory_map.h). Errors: gone (it has ended; a later process with its
  // pid is not taken for it).
  static Result<QemuMemoryAccess> known(const ProcessIdentity& process,
                                        std::vector<std::uint64_t> block_addresses);

  // Where each block of the layout begins in QEMU's address space.
  const std::vector<std::uint64_t>& block_addresses() const { return block_addresses_; }

  // A duplicate of QEMU's userfaultfd. Errors: not_found (QEMU has none yet), gone, unsupported, vmm (it has several).
  Result<UniqueFd> userfault() const;

  // Errors: gone, unsupported, io.
  Result<PageTables> page_tables() const;

  // Marks the absent pages that QEMU's page tables already have. What they do not show (a page of a memory file that is not
  // mapped) is found when it is placed. Errors: gone, unsupported, io.
  Result<void> mark_present(const MemoryLayout& layout, SentMap& sent) const;

 private:
  QemuMemoryAccess(int pid, UniqueFd pidfd, std::vector<std::uint64_t> block_addresses)
      : pid_(pid), pidfd_(std::move(pidfd)), block_addresses_(std::move(block_addresses)) {}

  int pid_;
  UniqueFd pidfd_;
  std::vector<std::uint64_t> block_addresses_;
};

}  // namespace pageferry
