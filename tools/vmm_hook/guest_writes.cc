// Synchronous tracking makes each first write to a page wait for a thread. That is borne while pages are missing, when a touch waits for
// much more, and while somebody moves the guest. Afterwards it rests, and the account of the image ends with it.
#include "tools/vmm_hook/guest_writes.h"

#include <utility>

namespace pageferry {
namespace {

std::unique_ptr<RestoredWriteSource> make_restored_source(const HookConfig& config,
                                                          const IncomingMemory& memory) {
  std::vector<RestoredWriteSource::Place> places;
  for (const auto& slot : config.slots) {
    places.push_back({.address = slot.host_address,
                      .memory = slot.has_memory ? RestoredWriteSource::Memory::file
                                                : RestoredWriteSource::Memory::anonymous});
  }
  return std::make_unique<RestoredWriteSource>(config.layout, std::move(places),
                                               memory.descriptor(), *memory.tracking());
}

}  // namespace

Result<std::unique_ptr<GuestWrites>> GuestWrites::make(const HookConfig& config,
                                                       std::unique_ptr<DirtySource> source,
                                                       IncomingMemory* memory) {
  std::unique_ptr<RestoredWriteSource> restored;
  if (memory != nullptr && memory->tracking()) restored = make_restored_source(config, *memory);
  RestoredWriteSource* const begins = restored.get();
  if (restored) {
    PF_TRY(restored->start(PagesAtStart::not_written));
    source = std::move(restored);
  }
  std::unique_ptr<GuestWrites> writes(
      new GuestWrites(std::move(source), memory, config.layout.pages()));
  writes->restored_ = begins;
  writes->knows_restored_writes_ = begins != nullptr;
  return writes;
}

Result<void> GuestWrites::start(Since since) {
  if (since == Since::image && !knows_restored_writes_) {
    return fail(Errc::not_found, "not every write since the guest was restored is known");
  }
  if (restored_ == nullptr) PF_TRY(source_->start());
  owed_.take();
  if (since == Since::image) {
    owed_.merge_back(since_image_);
  } else if (restored_ != nullptr) {
    set_all(owed_);
  }
  mover_ = true;
  return {};
}

Result<void> GuestWrites::ask_source(DirtyBitmap& written, Guest guest) {
  if (guest == Guest::runs) return source_->collect_into(written);
  for (PageIndex from{0}; raw(from) < written.pages();) {
    PF_ASSIGN(from, source_->collect_paused_into(written, from));
  }
  source_->take_reports_into(written);
  return {};
}

Result<void> GuestWrites::collect_into(DirtyBitmap& dirty, Guest guest) {
  DirtyBitmap written(dirty.pages());
  if (auto collected = ask_source(written, guest); !collected) {
    set_all(since_image_);
    set_all(owed_);
    return collected;
  }
  DirtyBitmap missing(dirty.pages());
  if (memory_ != nullptr && memory_->are_missing()) {
    if (auto looked = memory_->missing_into(missing); !looked) {
      since_image_.merge_back(written);
      owed_.merge_back(written);
      return looked;
    }
  }
  // Other sources name every page the first time.
  if (restored_ == nullptr) owed_.merge_back(written);
  DirtyBitmap still_owed(dirty.pages());
  for (PageIndex from{0}; raw(from) < missing.pages();) {
    const auto run = missing.next_run(from, missing.pages());
    if (!run) break;
    for (std::uint64_t i = 0; i < run->pages; ++i) {
      if (owed_.is_set(run->first + i)) still_owed.set({run->first + i, 1});
    }
    owed_.clear(*run);
    written.clear(*run);
    from = run->first + run->pages;
  }
  since_image_.merge_back(written);
  dirty.merge_back(owed_);
  dirty.merge_back(written);
  owed_ = std::move(still_owed);
  return {};
}

Result<void> GuestWrites::stop() {
  mover_ = false;
  owed_.take();
  if (restored_ == nullptr) return source_->stop();
  rest();
  return {};
}

void GuestWrites::became_resident() {
  if (restored_ == nullptr) return;
  restored_->all_are_there();
  rest();
}

// What cannot be unprotected goes on costing time, and loses nothing.
void GuestWrites::rest() {
  const bool still_wanted = mover_ || (memory_ != nullptr && memory_->are_missing());
  if (restored_->kind() == RestoredWriteSource::Kind::asynchronous || still_wanted) return;
  knows_restored_writes_ = false;
  static_cast<void>(restored_->unprotect_all());
}

}  // namespace pageferry
