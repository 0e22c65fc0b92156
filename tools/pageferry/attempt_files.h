// The files of one attempt: pages, state, prepare, manifest.json. Small files are written once,
// exclusively, fsynced; everything is reached through the attempt's directory descriptor and no
// symlink is followed.
//
// Thread rule: functions without state.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pager/page_file_reader.h"
#include "transport/faulty_file.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/storage_wait.h"
#include "transport/vm_directory.h"
#include "vmstate/device_state.h"

namespace pageferry {

inline constexpr const char* kPagesFileName = "pages";
inline constexpr const char* kStateFileName = "state";
inline constexpr const char* kPrepareFileName =
    "prepare";  // state without device sections, for prepare()

// Creates it 0600, writes, fsyncs the file and the directory. exists: somebody else's attempt;
// never overwritten.
Result<void> write_attempt_file(const Attempt& attempt, const std::string& file_name,
                                std::span<const std::byte> bytes);
Result<void> write_attempt_text(const Attempt& attempt, const std::string& file_name,
                                std::string_view text);

// Whole contents, past the page cache where the file system lets us (the writer was another host).
// Bounded by the formats' limits.
Result<std::string> read_attempt_text(const Attempt& attempt, const std::string& file_name);
Result<std::vector<std::byte>> read_attempt_file(const Attempt& attempt,
                                                 const std::string& file_name);
Result<QemuState> read_attempt_state(const Attempt& attempt, const std::string& file_name);

// The file as it is, or suffering `faults`. The clock outlives it.
Result<std::unique_ptr<StorageFile>> with_faults(std::unique_ptr<StorageFile> file,
                                                 const std::vector<StorageFault>& faults,
                                                 const Clock& clock);

// The page file suffers `faults` (--inject-store), counted from each opening of it; none is the
// usual. Its bases suffer none. The clock outlives the file.
//
// A new, empty page file, on a thread of its own: whoever writes it is never held up by a call into
// the store.
Result<std::unique_ptr<StorageFile>> create_attempt_pages(const Attempt& attempt,
                                                          const std::vector<StorageFault>& faults,
                                                          const Clock& clock);
// The page file as it is, also while it is still being written; without faults. Keep it for several
// reads: each opening costs an aio context.
Result<std::unique_ptr<StorageFile>> open_pages_to_read(const Attempt& attempt);
// Opens the bases of its page file. Lifetime: the attempt outlives it.
BaseFileOpener bases_in(const Attempt& attempt);
// Reads a bit more of its map, as far as it is on the store.
Result<PageMapPreload::Progress> preload_map(StorageFile& file, const Clock& clock,
                                             PageMapPreload& preload);
// Committed page files only, with their bases. What was preloaded is not read again.
Result<std::unique_ptr<PageFileReader>> open_attempt_pages(const Attempt& attempt,
                                                           const std::vector<StorageFault>& faults,
                                                           const Clock& clock,
                                                           PageReadPreparation prepared);
// Reads every stored page of a committed page file back and proves it. corrupt: names the first bad
// page. Errors of the bounds as in storage_wait.h.
Result<void> verify_attempt_pages(const Attempt& attempt, const std::vector<StorageFault>& faults,
                                  const Clock& clock, const WaitBounds& bounds);
// corrupt when the page file's commit is not the one that the release names.
Result<void> check_commit(const PageFileReader& reader, const RandomId& commit);

}  // namespace pageferry
