// Waiting for a StorageFile: until something finished, somebody canceled, or the time is up; and,
// built on it, single blocking reads, writes and syncs for the few places that do one thing at a
// time.
//
// Thread rule: that of the file.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "transport/cancel_signal.h"
#include "transport/os/clock.h"
#include "transport/storage_file.h"

namespace pageferry {

// What may end a wait besides the store. `cancel` may be null.
struct WaitBounds {
  const CancelSignal* cancel = nullptr;
  Deadline deadline = Deadline::never();
};

// Blocks until at least one completion is appended to `done`. Errc::canceled, Errc::timeout.
// Precondition: in_flight() > 0.
Result<void> wait_for_completions(StorageFile& file, const WaitBounds& bounds,
                                  std::vector<IoDone>& done);

// Blocking, one at a time; the file has nothing else in flight. After Errc::canceled or
// Errc::timeout the operation is still in flight and the memory belongs to the store (StorageFile,
// lifetime).
Result<void> read_blocking(StorageFile& file, std::span<std::byte> to, std::uint64_t offset,
                           const WaitBounds& bounds);
Result<void> write_blocking(StorageFile& file, std::span<const std::byte> from,
                            std::uint64_t offset, const WaitBounds& bounds);
Result<void> sync_blocking(StorageFile& file, const WaitBounds& bounds);

}  // namespace pageferry
