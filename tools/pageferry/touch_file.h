// The record of first touches of a VM on the store: the file `touches` in the VM's directory, beside the attempts, so that no tidying of
// them takes it away. It holds page numbers, nothing of the guest's memory. Only a hint: whoever cannot read or write it goes on without.
//
// The last writer wins, and a reader sees the file before or the one after, never a mixture: it is written under another name, which a
// crash may leave behind and the next writer removes.
//
// Thread rule: functions without state. Each call may block for as long as the store does not answer.
#pragma once

#include <optional>

#include "pager/memory_layout.h"
#include "pager/touch_record.h"
#include "transport/os/error.h"
#include "transport/vm_directory.h"

namespace pageferry {

inline constexpr const char* kTouchFileName = "touches";
inline constexpr const char* kUnfinishedTouchFileName = "touches.tmp";

// nullopt: there is none. Errors: those of TouchRecord::decode; corrupt: a symlink, no regular file, or longer than a record can be.
Result<std::optional<TouchRecord>> read_touch_file(const VmDirectory& directory,
                                                   const MemoryLayout& layout);

// Durable on return, 0600. On an error the record before stays. A record that says nothing is not written.
Result<void> write_touch_file(const VmDirectory& directory, const TouchRecord& record,
                              const MemoryLayout& layout);

}  // namespace pageferry
