// PageMapPreload: the part of a page file that can be read before it is committed, while the guest still runs at the source:
// header, RAM layout, and the map blocks that are on the store by now. Opening the image then reads only what changed since
// (PageFileImage::load compares checksums), so that the time to open does not grow with the guest: 4 MiB of map for each GiB
// would be 30 ms of a blackout for 2 GiB.
//
// Nothing that is read here is believed: blocks that are missing, torn or old differ in their checksum from what the commit
// record vouches for, and are read again. A preload that failed, or of another file, costs only its time.
//
// Thread rule: one thread. Lifetime: values; the file is only used during advance().
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "pager/page_file_format.h"
#include "pager/page_map.h"
#include "transport/storage_file.h"
#include "transport/storage_wait.h"

namespace pageferry {

// What a map block says, as far as it can be judged without the commit record.
struct MapBlockFacts {
  std::uint64_t location_end = 0;  // highest location in this file + 1, in file blocks
  std::uint32_t crc = 0;
  std::uint32_t version_max = 0;
  std::uint32_t stored = 0;    // pages with content
  std::uint32_t in_bases = 0;  // of them
  bool sound = false;          // read, and its checksum and entries hold
};

// Errc::corrupt names the block, or the page whose entry cannot be.
Result<MapBlockFacts> examine_map_block(const PageFileHeader& header, std::uint64_t number,
                                        ConstFileBlock block);

class PageMapPreload {
 public:
  PageMapPreload() = default;
  PageMapPreload(PageMapPreload&&) = default;
  PageMapPreload& operator=(PageMapPreload&&) = default;

  enum class Progress : std::uint8_t { more, all_there_is };
  // One step: header and layout if they are not in hand, then the next map blocks that are not sound, 1 MiB of them at most.
  // all_there_is: none of them was on the store, or none is left; the next step then begins with the first of all.
  // `file`: has nothing in flight; may still be written by somebody else. Errors: as of PageFileImage::load; nothing is
  // in hand after one, and the next step begins anew.
  Result<Progress> advance(StorageFile& file, std::uint64_t map_bytes_max,
                           const WaitBounds& bounds);

  // Those blocks were written anew: they are read again by the next steps. Blocks that there are not are left out.
  void forget(MapBlockRun run);

  // Map blocks that are sound now.
  std::uint64_t sound_blocks() const;

 private:
  friend struct PageFileImage;
  // Reads what `header` describes but the map: for a file whose header is known to be good.
  Result<void> begin(StorageFile& file, const PageFileHeader& header, std::uint64_t map_bytes_max,
                     const WaitBounds& bounds);

  std::vector<MapBlockRun> next_unsound_runs() const;

  std::optional<PageFileHeader> header_;
  MemoryLayout layout_;
  PageMap map_;
  std::vector<MapBlockFacts> facts_;
  std::uint64_t next_ = 0;  // block with which the next step begins
};

}  // namespace pageferry
