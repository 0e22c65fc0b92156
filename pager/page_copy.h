// Copies a page to where only a device will read it next.
//
// An ordinary copy first reads the destination into the caches and pushes out what the next page needs;
// non-temporal stores go past them (Intel SDM vol. 1, 10.4.6.2). Of a capture's CPU time the copy into
// staging memory is the largest part, and staging memory is larger than the second-level cache.
//
// Thread rule: functions without state.
#pragma once

#include <span>

#include "pager/page.h"

namespace pageferry {

// `to` is aligned to 16 bytes and does not overlap `from`. When it returns, other threads that
// synchronise with this one see the bytes, as after an ordinary copy. On processors other than x86-64
// it is one.
void copy_page_past_caches(std::span<std::byte, kPageSizeBytes> to, PageBytes from);

// Asks the processor for a page that is read soon: its own prefetcher begins anew at each page, and is not fast enough for one that
// is read only once. Scattered pages are put twice as fast with it (docs/benchmarks.md). Any address is allowed.
void fetch_ahead(const std::byte* page);

}  // namespace pageferry
