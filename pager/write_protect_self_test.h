// Whether asynchronous write protection can be trusted on the kernel that runs here. Its first years had errors, and a tracker that
// misses a write corrupts a guest in silence; so the start of a VMM tries on scratch memory what the migration will rely on. Takes
// milliseconds.
//
// Thread rule: any thread; blocks it shortly.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pager/dirty_source.h"
#include "pager/memory_layout.h"
#include "transport/os/error.h"

namespace pageferry {

// On anonymous and on memfd memory: all pages are dirty once; then exactly the written ones, by the CPU and by a system call;
// reading a page that was never there is no write; writing one is; nothing is reported twice. Errors: unsupported (the kernel
// has none of it, or is wrong: the message says in what).
Result<void> async_write_protect_self_test();

struct WriteProtectChoice {
  std::unique_ptr<DirtySource> source;  // not started
  std::string why_not_async;            // empty when it is asynchronous
};
// Asynchronous where the self-test passes, else synchronous. What cannot be had at all, start() says.
WriteProtectChoice choose_write_protect_source(const MemoryLayout& layout,
                                               std::vector<std::uint64_t> block_addresses);

}  // namespace pageferry
