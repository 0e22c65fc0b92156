// Pre-flight of a store directory: everything the hand-off needs from it is tried for real, with a
// file that is removed again. For `pageferry check`, and before every migration.
//
// Thread rule: one call at a time per store is enough, several do not disturb each other. Blocks
// for as long as the store does; a caller that needs a bound runs it on a thread of its own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "transport/aio_file.h"
#include "transport/store_mount.h"

namespace pageferry {

struct StoreReport {
  std::string path;
  StoreMount mount;               // empty when it could not be found
  std::uint64_t total_bytes = 0;  // 0 when unknown
  std::uint64_t free_bytes = 0;   // for this user
  IoMode io_mode = IoMode::buffered;
  std::uint64_t sync_ns = 0;  // one 4 KiB write and fdatasync; 0: not tried
  std::vector<StoreFinding> findings;

  // No finding is a refusal.
  bool usable() const;
  // The first refusal's message, or empty.
  std::string refusal() const;
};

StoreReport check_store(const std::string& path);

}  // namespace pageferry
