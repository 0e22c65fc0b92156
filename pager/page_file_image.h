// PageFileImage: what a committed page file says about itself: header, commit record, RAM layout
// and the whole page map with the delta put in. Loading it is where every refusal happens; what
// holds one may trust every field.
//
// The map is read whole: 4.02 MiB for each GiB of guest, at the store's sequential speed (a 64 GiB
// guest: 257 MiB). Blocks on demand would save that for a guest that touches little, but then
// is_zero() could block, and the one fault that waits longest is the first.
//
// Thread rule: immutable after load(); freely shared.
#pragma once

#include "pager/page_file_format.h"
#include "pager/page_map.h"
#include "transport/storage_file.h"
#include "transport/storage_wait.h"

namespace pageferry {

struct PageFileImage {
  PageFileHeader header;
  CommitRecord record;
  MemoryLayout layout;
  PageMap map;

  // Reads and checks everything but the pages. `file` has nothing in flight. Errors, each one line
  // that names the file: the format's (page_file_format.h), Errc::corrupt also for a file shorter
  // than its commit record says, Errc::invalid for a map beyond map_bytes_max, Errc::timeout and
  // Errc::canceled from the bounds.
  static Result<PageFileImage> load(StorageFile& file, std::uint64_t map_bytes_max,
                                    const WaitBounds& bounds);
};

}  // namespace pageferry
