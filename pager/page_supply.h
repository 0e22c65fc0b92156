// PageSupply: where a restore gets pages from. The page file reader is one; tests use a fake.
// Reads are asynchronous; every page that is handed out has passed its checksum. A page that still fails after the
// retries is reported as Errc::corrupt (bad checksum) or Errc::io, never handed out.
//
// Thread rule: one thread, the restore loop's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page.h"
#include "transport/os/error.h"

namespace pageferry {

// Demand reads get the highest I/O priority and their own slots; prefetch reads may be held back.
enum class ReadClass : std::uint8_t { demand, prefetch };

struct ReadDone {
  std::uint64_t ticket = 0;  // as returned by start_read
  PageRun run;
  ReadClass read_class{};
  Result<std::span<const std::byte>>
      bytes;  // run.pages * kPageSizeBytes, zero pages included; valid until release(ticket)
};

class PageSupply {
 public:
  virtual ~PageSupply() = default;

  virtual const MemoryLayout& layout() const = 0;

  // No bytes are stored for it: its content is zero. Precondition: raw(page) < layout().pages().
  virtual bool is_zero(PageIndex page) const = 0;

  // How recently the page was written at the source: the number of the pass that stored it (blackout: the highest).
  // 0 for pages never stored.
  virtual std::uint32_t version(PageIndex page) const = 0;

  // The pages that were written last, while the source's guest was already stopped, as far as they are cheap to read; ascending.
  // Lifetime: as long as the supply.
  virtual std::span<const PageIndex> recent_pages() const { return {}; }

  // The longest run from `page` (at most `pages_max`) that lies together in the file, so that one read serves it, and is
  // all stored (no zero page). At least 1 page. Precondition: !is_zero(page).
  virtual PageRun contiguous_run(PageIndex page, std::uint64_t pages_max) const = 0;

  // Starts one read of a run that contiguous_run returned (or part of it). Errc::busy: no slot or buffer free now, poll first.
  // Result: the ticket.
  virtual Result<std::uint64_t> start_read(PageRun run, ReadClass read_class) = 0;

  // Readable when poll() has something to report (an eventfd). Lifetime: as long as the supply.
  virtual int ready_fd() const = 0;

  // Reads that finished since the last call; never blocks. Retries of failed reads happen inside and show up later.
  virtual std::vector<ReadDone> poll() = 0;

  // Gives the buffer of a finished read back. Exactly once for each ReadDone (also for failed ones).
  virtual void release(std::uint64_t ticket) = 0;
};

}  // namespace pageferry
