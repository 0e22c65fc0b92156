// EarlyService: what a recovery does before it waits for a monitor: if the guest runs here and pages of it are missing, bring those
// that somebody waits for (vmstate/qemu_fault_service.h says why the monitor would not answer before). Where they come in QEMU's stream
// only a restore can bring them, and finds here what it needs for that (vmstate/qemu_out_of_band.h).
//
// It decides nothing: pages may always be served to the VMM of the running epoch (docs/ownership-protocol.md, rule 4), and when it
// cannot begin, recovery goes on without it.
//
// Thread rule: one thread. Lifetime: the clock outlives it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "pager/page_file_reader.h"
#include "tools/pageferry/hand_off.h"
#include "tools/pageferry/options.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/vm_directory.h"
#include "vmstate/qemu_fault_service.h"

namespace pageferry {

struct KeptMemoryMap {
  std::string run_directory;
  QemuMemoryMap map;
};

// The map of `process` in a run directory of the VM below `run_dir`; nullopt when there is none. Errors: a map there cannot be
// believed, whosever it is.
Result<std::optional<KeptMemoryMap>> find_memory_map(const std::string& run_dir,
                                                     const std::string& vm_name,
                                                     const ProcessIdentity& process);

// A guest of this host that runs without some of its pages.
struct MissingPages {
  KeptMemoryMap kept;
  GuestState state;  // names the image
};

// nullopt: no guest runs here, it has all pages, or no map is there. Errors: those of find_memory_map.
Result<std::optional<MissingPages>> find_missing_pages(const RecoverCommand& command,
                                                       const HandOff& hand_off,
                                                       const OwnershipSnapshot& snapshot);

class EarlyService {
 public:
  // Errors: those of the image and QemuFaultService.
  static Result<std::unique_ptr<EarlyService>> start(const RecoverCommand& command,
                                                     HandOff& hand_off, const MissingPages& missing,
                                                     const Clock& clock);

  std::uint64_t pages_placed() const { return service_->pages_placed(); }

 private:
  EarlyService(Attempt attempt, std::unique_ptr<PageFileReader> reader)
      : attempt_(std::move(attempt)), reader_(std::move(reader)) {}

  Attempt attempt_;
  std::unique_ptr<PageFileReader> reader_;  // its own: the restore reads beside it
  std::unique_ptr<QemuFaultService> service_;
};

}  // namespace pageferry
