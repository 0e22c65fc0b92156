// EarlyService: what a recovery does before it waits for a monitor: if the guest runs here and pages of it are missing, bring those
// that somebody waits for (vmstate/qemu_fault_service.h says why the monitor would not answer before). Finds the memory map that the
// restore left in a run directory of the VM, and the image that the records name.
//
// It decides nothing: pages may always be served to the VMM of the running epoch (docs/ownership-protocol.md, rule 4), and when it
// cannot begin, recovery goes on without it.
//
// Thread rule: one thread. Lifetime: the clock outlives it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "pager/page_file_reader.h"
#include "tools/pageferry/hand_off.h"
#include "tools/pageferry/options.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/vm_directory.h"
#include "vmstate/qemu_fault_service.h"

namespace pageferry {

class EarlyService {
 public:
  // Null where there is nothing to do: no guest runs here, it has all pages, or no map is there. Errors: those of the map, the image
  // and QemuFaultService.
  static Result<std::unique_ptr<EarlyService>> start(const RecoverCommand& command,
                                                     HandOff& hand_off,
                                                     const OwnershipSnapshot& snapshot,
                                                     const Clock& clock);

  std::uint64_t pages_placed() const { return service_->pages_placed(); }

 private:
  EarlyService(Attempt attempt, std::unique_ptr<PageFileReader> reader)
      : attempt_(std::move(attempt)), reader_(std::move(reader)) {}

  Attempt attempt_;
  std::unique_ptr<PageFileReader> reader_;  // its own: the restore reads beside it
  std::unique_ptr<QemuFaultService> service_;
};

// The map of `process` in a run directory of the VM below `run_dir`; nullopt when there is none. Errors: a map there cannot be
// believed, whosever it is.
Result<std::optional<QemuMemoryMap>> find_memory_map(const std::string& run_dir,
                                                     const std::string& vm_name,
                                                     const ProcessIdentity& process);

}  // namespace pageferry
