// PageFileImage: what a committed page file says about itself: header, commit record, RAM layout
// and the whole page map with the delta put in. Loading it is where every refusal happens; what
// holds one may trust every field.
//
// The map is read whole: 4.02 MiB for each GiB of guest, at the store's sequential speed (a 64 GiB
// guest: 257 MiB), or only what a PageMapPreload has not got yet. Blocks on demand would save that
// for a guest that touches little, but then is_zero() could block, and the one fault that waits
// longest is the first.
//
// Thread rule: immutable after load(); freely shared.
#pragma once

#include "pager/page_file_format.h"
#include "pager/page_map.h"
#include "pager/page_map_preload.h"
#include "transport/storage_file.h"
#include "transport/storage_wait.h"

namespace pageferry {

struct PageFileImage {
  PageFileHeader header;
  CommitRecord record;
  MemoryLayout layout;
  PageMap map;
  std::vector<PageIndex> tail_pages;  // whose content lies in the reserved tail, ascending

  // Reads and checks everything but the pages. `file` has nothing in flight; `preload` is what was
  // read of it before, or of another (then it is not used). What cannot be read, or does not fit,
  // is read a second time. Errors, each one line that names the file: the format's
  // (page_file_format.h), Errc::corrupt also for a file shorter than its commit record says,
  // Errc::invalid for a map beyond map_bytes_max, Errc::timeout and Errc::canceled from the bounds.
  static Result<PageFileImage> load(StorageFile& file, std::uint64_t map_bytes_max,
                                    const WaitBounds& bounds, PageMapPreload preload = {});

 private:
  static Result<PageFileImage> load_unnamed(StorageFile& file, std::uint64_t map_bytes_max,
                                            const WaitBounds& bounds, PageMapPreload preload);
};

}  // namespace pageferry
