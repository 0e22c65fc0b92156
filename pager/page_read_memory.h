// PageReadMemory: the memory that a PageFileReader reads into, made and touched ahead of time. Fresh memory is cleared by the
// kernel when it is first used, and may be new to the machine's own host too; the reads that a guest waits for first would
// pay for that (seen: 5 to 15 ms in a downtime of 40).
//
// Thread rule: one thread. A value: give it to PageFileReader::open.
#pragma once

#include <cstddef>
#include <memory>

#include "transport/io_buffer.h"
#include "transport/os/error.h"

namespace pageferry {

struct PageFileReaderOptions;

struct PageReadMemory {
  std::unique_ptr<IoBufferPool> demand;
  std::unique_ptr<IoBufferPool> prefetch;
  AlignedMemory tail;

  // For a reader with the same options. Errors: those of IoBufferPool::make.
  static Result<PageReadMemory> make(const PageFileReaderOptions& options);
  // The same, with the memory that a restore usually uses asked for now (IoBufferPool::populate).
  static Result<PageReadMemory> make_populated(const PageFileReaderOptions& options);
};

}  // namespace pageferry
