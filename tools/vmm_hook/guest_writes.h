// GuestWrites: which pages of the guest a mover has to take: those that were written since it began, or since the image that the guest was
// restored from; and of these only those that are there.
//
//   source --fetch--> written --+--> since the image, added up as long as the guest lives here
//                               +--> owed to the mover --named, if they are there--> the collection
//                                          ^------ missing: owed still ------+
//
// Why no page is read that is missing: a collection asks for written pages first and looks then which are missing; what it names is
// there, and stays there (a page that is given back while others are missing is placed as zeros at once). A page that was missing at that
// look has never been written, so for the image's account it is no change.
//
// A guest that was not restored here, or whose writes are tracked in a way that does not begin with its first page, has no such account.
//
// Thread rule: mark() and discard() any thread; knows_restored_writes() too; the rest the hook's worker. Lifetime: config and memory
// outlive it.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "pager/dirty_bitmap.h"
#include "pager/dirty_source.h"
#include "pager/restored_write_source.h"
#include "tools/vmm_hook/hook_config.h"
#include "tools/vmm_hook/incoming_memory.h"

namespace pageferry {

class GuestWrites {
 public:
  // `source`: used where the memory has no tracking of its own. `memory`: null for a VMM that is not incoming.
  // Errors: those of the source that begins with the restore.
  static Result<std::unique_ptr<GuestWrites>> make(const HookConfig& config,
                                                   std::unique_ptr<DirtySource> source,
                                                   IncomingMemory* memory);

  enum class Since : std::uint8_t { now, image };
  // Of one mover. `image`: not_found without an account.
  Result<void> start(Since since);
  // `paused`: nobody writes (D1 of pager/dirty_source.h), so that nothing need be armed again. Errors: the source's; then everything is
  // owed again.
  enum class Guest : std::uint8_t { runs, paused };
  Result<void> collect_into(DirtyBitmap& dirty, Guest guest);
  Result<void> stop();
  // Every page is there.
  void became_resident();

  void mark(PageRun run) { source_->mark_dirty(run); }
  void discard(PageRun run) { source_->discard(run); }
  bool knows_restored_writes() const { return knows_restored_writes_.load(); }

 private:
  GuestWrites(std::unique_ptr<DirtySource> source, IncomingMemory* memory, std::uint64_t pages)
      : source_(std::move(source)), memory_(memory), since_image_(pages), owed_(pages) {}
  void set_all(DirtyBitmap& bitmap) const { bitmap.set({PageIndex{0}, bitmap.pages()}); }
  Result<void> ask_source(DirtyBitmap& written, Guest guest);
  void rest();

  std::unique_ptr<DirtySource> source_;
  IncomingMemory* memory_;
  RestoredWriteSource* restored_ = nullptr;  // source_, where that began with the restore
  bool mover_ = false;
  DirtyBitmap since_image_;
  DirtyBitmap owed_;
  std::atomic<bool> knows_restored_writes_{false};
};

}  // namespace pageferry
