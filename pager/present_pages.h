// Which pages of a guest its VMM has already: for a pager that begins where another one stopped.
//
// Thread rule: pure function over its arguments.
#pragma once

#include <cstdint>
#include <span>

#include "pager/memory_layout.h"
#include "pager/sent_map.h"
#include "transport/os/error.h"
#include "transport/os/page_tables.h"

namespace pageferry {

// Marks as received every backing page that the page tables show. What they do not show may be there nevertheless (swapped out, or in a
// memory file, touched through another mapping): the kernel then refuses it a second time.
// Precondition: addresses[i] is where block i of the layout begins. Errors: gone (the process has ended), io.
Result<void> mark_present(const PageTables& tables, const MemoryLayout& layout,
                          std::span<const std::uint64_t> addresses, SentMap& sent);

}  // namespace pageferry
