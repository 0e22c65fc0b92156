// Pools for reads of both classes, and one piece for the tail.
#include "pager/page_read_memory.h"

#include "pager/page_file_reader.h"

namespace pageferry {
namespace {

// Most tails are smaller; of a larger one the rest comes when it is read.
constexpr std::size_t kTailPopulatedBytes = std::size_t{8} << 20;

}  // namespace

Result<PageReadMemory> PageReadMemory::make(const PageFileReaderOptions& options) {
  PageReadMemory memory;
  PF_ASSIGN(memory.demand, IoBufferPool::make(options.read_bytes_max, options.demand_slots));
  PF_ASSIGN(memory.prefetch, IoBufferPool::make(options.read_bytes_max, options.prefetch_slots));
  if (options.tail_cache_bytes_max > 0) {
    PF_ASSIGN(memory.tail, AlignedMemory::map(options.tail_cache_bytes_max));
  }
  return memory;
}

Result<PageReadMemory> PageReadMemory::make_populated(const PageFileReaderOptions& options) {
  PF_ASSIGN(PageReadMemory memory, make(options));
  memory.demand->populate(memory.demand->count());
  memory.prefetch->populate(memory.prefetch->count());
  memory.tail.populate(kTailPopulatedBytes);
  return memory;
}

}  // namespace pageferry
