// PageSink: where a capture puts pages. The page file writer is one; tests use a fake.
// The capture side (a VMM adapter) sees this and never the page file.
//
// Thread rule: one thread, the capture's.
#pragma once

#include <cstdint>
#include <span>

#include "pager/memory_layout.h"
#include "pager/page.h"
#include "transport/os/error.h"

namespace pageferry {

class PageSink {
 public:
  virtual ~PageSink() = default;

  // Called once, before any page. An error refuses the migration (the guest is untouched).
  virtual Result<void> begin(const MemoryLayout& layout) = 0;

  // A new pass over dirty memory begins; pages of later passes are hotter. Pass numbers start at 1 and only grow.
  virtual void begin_pass(std::uint32_t pass) = 0;

  // The guest runs, and may be stopped soon with about so many bytes left: what was put so far is brought to the store, and what a
  // blackout needs is made ready, so that the guest does not wait for it. May be called again.
  virtual Result<void> prepare_blackout(std::uint64_t /*remaining_bytes*/) { return {}; }

  // The guest is stopped: from here pages go to the sequential tail. Called at most once.
  virtual Result<void> begin_blackout() = 0;

  // The newest content of a page; replaces any earlier one. The bytes are copied before return (or found to be zero).
  // May block while the store is behind (that is the back-pressure that slows the VMM's stream, never the guest).
  // Nobody changes them meanwhile, or they are put again: checksum and copy read them apart.
  virtual Result<void> put_page(PageIndex page, PageBytes bytes) = 0;
  virtual Result<void> put_zero(PageIndex page) = 0;

  // The newest content of pages that lie one behind the other, in memory that is lent: it stays where it is until the sink is
  // destroyed, and its bytes may change at any time. A page that may have changed is put again before the commit (its stored
  // bytes and its checksum may be of different moments). Saves the copy where the sink can.
  virtual Result<void> put_lent_pages(PageRun run, std::span<const std::byte> bytes);
};

inline Result<void> PageSink::put_lent_pages(PageRun run, std::span<const std::byte> bytes) {
  for (std::uint64_t i = 0; i < run.pages; ++i) {
    PF_TRY(put_page(run.first + i, PageBytes(bytes.data() + bytes_of_pages(i), kPageSizeBytes)));
  }
  return {};
}

}  // namespace pageferry
