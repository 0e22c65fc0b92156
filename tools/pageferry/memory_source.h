// MemorySource: a guest's memory in a file that the user names: a page file of ours, committed, or a plain memory file, as VMMs save one.
//
// Thread rule: functions without state; the source: that of PageSupply. Lifetime: the clock outlives the source.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pager/page_file_bases.h"
#include "pager/page_supply.h"
#include "transport/aio_file.h"
#include "transport/faulty_file.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/storage_wait.h"

namespace pageferry {

enum class MemoryFileKind : std::uint8_t { plain, page_file };

// An existing regular file, for reading. Errors: those of AioFile::open.
Result<std::unique_ptr<AioFile>> open_storage_file(const std::string& path, AioOptions options);

// Opens the bases of a page file: they lie in its directory.
BaseFileOpener bases_beside(const std::string& path);

// The file suffers `faults` (--inject-store). Errors: those of AioFile::open, PageFileReader::open, MemoryFileReader::open.
Result<std::unique_ptr<PageSupply>> open_memory_source(const std::string& path, MemoryFileKind kind,
                                                       const std::vector<StorageFault>& faults,
                                                       const Clock& clock,
                                                       const WaitBounds& bounds);

}  // namespace pageferry
