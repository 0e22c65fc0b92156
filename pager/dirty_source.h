// DirtySource: says which pages of a running guest were written since it was asked last. Somebody in the VMM's process has to
// know: the VMM itself, KVM, or the process's page tables. docs/dirty-tracking.md compares them.
//
//   start()                       from here on no write is missed; every page counts as written once
//   repeat: collect_into(dirty)   what was written is added to `dirty`, and tracking is armed again for those pages
//           read and write them   ... only now: a write after the arming is in the next collection
//   pause vCPUs, drain devices    see D1
//   collect_into(dirty)           the last one; or collect_paused_into(dirty), piece by piece
//   stop()
//
// The contract. None of the sources sees everything (tests/kernel/dirty_*_test.cc show each hole, and that the rule closes it):
//
//   D1  drain: before the last collection no vCPU runs and no device or kernel thread may still write into guest memory: queued
//       reads have completed, buffers that are pinned for long (io_uring registered buffers, VFIO, RDMA) are idle. A pinned page
//       is written through its physical address; no page table and no KVM log has part in it. Hence also D2 for its writes.
//   D2  mark_dirty: a write through anything but the tracked way is reported by the writer, AFTER it was made: by DMA into pinned
//       pages, through another mapping of the same file or by pwrite(2) to it (vhost-user backends, helper processes); for the
//       KVM sources also everything that the VMM writes by itself, that is all of its devices; for the VMM's own, what its log
//       leaves out. Reported before the write, a collection in between takes the mark and reads the old page.
//   D3  discard: a hole that was made in guest memory (MADV_REMOVE, FALLOC_FL_PUNCH_HOLE, ftruncate: balloon, free page
//       reporting, virtio-mem) is reported after it was made. The page is zero now, which is a change; page tables do not show it
//       for files. Reported for any kind of memory, so that the VMM needs no cases.
//   D4  the memory stays where it is: not unmapped, mapped anew or moved while it is tracked. Where the kernel tells (the
//       userfaultfd sources), collect_into() fails.
//
// Errors: a collection that fails may have taken bits with it. So after one every page is dirty again, and the next successful
// collection reports all; nothing is lost, only time. Bits already added to `dirty` stay.
//
// Thread rule: start, collect_into and stop by one thread, and no page is read during collect_into on behalf of the same bitmap.
// mark_dirty and discard: any thread, at any time between construction and destruction; they never block.
// Lifetime: a source that was started is stopped, at the latest by its destructor; descriptors and memory of the VMM that it was
// given stay valid till then. All of it happens inside the VMM's process: KVM's and userfaultfd's calls work only there.
#pragma once

#include <cstdint>

#include "pager/dirty_bitmap.h"
#include "pager/memory_layout.h"
#include "pager/page.h"
#include "pager/reported_pages.h"
#include "transport/os/error.h"

namespace pageferry {

// What a source that begins says of pages that nobody writes afterwards.
enum class PagesAtStart : std::uint8_t { written, not_written };

class DirtySource {
 public:
  virtual ~DirtySource() = default;
  DirtySource(const DirtySource&) = delete;
  DirtySource& operator=(const DirtySource&) = delete;

  // Errors: unsupported (this kernel or VMM cannot), busy (somebody else tracks this memory), vmm, io. Then it is not started.
  // `not_written`: for a caller who knows what every page holds now (a restore, before its first page; a base). Precondition: not
  // started (checked).
  Result<void> start(PagesAtStart pages = PagesAtStart::written);

  // May take long (docs/dirty-tracking.md has figures) and may slow writers down meanwhile; never stops them.
  // Preconditions: started; as many pages as the layout (both checked). Errors: vmm (D4 was broken, or the VMM's own), io.
  Result<void> collect_into(DirtyBitmap& dirty);

  // The last collection in pieces, so that what was found can be stored while the rest is still being looked for. Adds what was written
  // from page `from` on, as far as one piece goes, and says where the next one begins; behind the last page: that was the last piece.
  // Reports by hand are taken with the first piece; those that came later, take_reports_into() adds.
  // Precondition: D1 holds until the last piece. So nothing need be armed again: where the guest goes on after all, later collections
  // report these pages once more. Errors as above.
  Result<PageIndex> collect_paused_into(DirtyBitmap& dirty, PageIndex from);
  void take_reports_into(DirtyBitmap& dirty) { reported_.take_into(dirty); }

  // D2. Precondition: inside the layout (checked).
  void mark_dirty(PageRun run) { reported_.mark(run); }
  // D3. The same.
  virtual void discard(PageRun run) { reported_.mark(run); }

  // Nothing is tracked or slowed down any more. What was not collected is lost; start() makes all dirty again. Is stopped
  // afterwards whatever it returns; an error says that the VMM or kernel may still log. Without start() nothing happens.
  Result<void> stop();
  bool is_started() const { return started_; }

 protected:
  // Lifetime: layout outlives it.
  explicit DirtySource(const MemoryLayout& layout) : layout_(&layout), reported_(layout.pages()) {}
  const MemoryLayout& layout() const { return *layout_; }

  // What differs. begin(): track; on an error everything is undone. fetch(): add what was written since the last call, armed
  // again; may leave out what was never written since begin(). end(): undo begin().
  virtual Result<void> begin() = 0;
  virtual Result<void> fetch(DirtyBitmap& dirty) = 0;
  virtual Result<void> end() = 0;
  // collect_paused_into() without the reports. A source that knows no pieces has one.
  virtual Result<PageIndex> fetch_paused(DirtyBitmap& dirty, PageIndex from);

 private:
  const MemoryLayout* layout_;
  bool started_ = false;
  ReportedPages reported_;
};

}  // namespace pageferry
