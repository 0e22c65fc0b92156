// DestinationVmm: the VMM that takes a guest, as the migration sequences see it, whatever kind it is: QemuDestinationVmm or
// HookDestinationVmm, as the manifest says. Started by us, stopped, and driven to the point where only a record and one word are missing.
//
//   start()           its process; it runs no guest
//   prepare()         what can be done before the image is there
//   take_state()      the committed image's device state, proved
//   load()            from here pages may be asked for, and are served
//   resume()          the caller's running record is durable
//   begin_prefetch()  nothing is held back for the switch any more
//   finish()          serves until every page is there
//
// Thread rule: calls from one thread; stats() and request_stop() from any. Lifetime: the supply outlives it. Destroying it ends no
// process: end() does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page_supply.h"
#include "pager/touch_record.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/manifest.h"
#include "vmstate/qemu_destination_command.h"
#include "vmstate/qemu_host_forwards.h"
#include "vmstate/qemu_restore.h"

namespace pageferry {

struct DestinationPlan {
  std::string run_directory;     // of this VMM, made
  std::string incoming_command;  // the user's; empty: as the manifest says
  DestinationHost host = DestinationHost::same;
  PrefetchOrder order = PrefetchOrder::hot;
  PagePlacement placement = PagePlacement::automatic;
};

class DestinationVmm {
 public:
  // Of the manifest's kind. Copies both.
  static std::unique_ptr<DestinationVmm> make(const VmManifest& manifest,
                                              const DestinationPlan& plan, const Clock& clock);
  virtual ~DestinationVmm() = default;

  // On an error nothing is left running. Errors: vmm (it ended; its log's last lines), timeout, invalid, io.
  virtual Result<void> start(Deadline deadline) = 0;
  // pid 0: not started.
  const ProcessIdentity& process() const { return process_; }
  // {"pid":, "qmp":} or {"pid":, "hook":}
  virtual nlohmann::json where() const = 0;
  // The machine's description of itself, after start(); what speaks against it, from the manifest's. Empty: fits.
  const nlohmann::json& machine() const { return machine_; }
  virtual std::vector<std::string> differences() const = 0;

  // It takes the disk locks when it loads its devices, not when its guest is resumed: the claim comes first then.
  virtual bool claims_before_load() const = 0;
  // `prepare_file`: empty where this kind has none.
  virtual Result<void> prepare(std::span<const std::byte> prepare_file, Deadline deadline) = 0;
  // After prepare(): the guest's RAM blocks.
  virtual const MemoryLayout& layout() const = 0;
  // What PrefetchOrder::recorded follows, of this layout; without it that order is as hot. Between prepare() and load().
  virtual void follow(const TouchRecord& record) = 0;
  // Errors: corrupt, version.
  virtual Result<void> take_state(std::span<const std::byte> state_file) = 0;
  virtual Result<void> load(PageSupply& supply, Deadline deadline) = 0;
  virtual Result<void> resume(std::uint64_t epoch, Deadline deadline) = 0;
  virtual void begin_prefetch() = 0;
  // Tells the network where the guest is now.
  virtual Result<void> announce(Deadline deadline) = 0;
  virtual Result<void> add_forwards(const std::vector<HostForward>& forwards,
                                    Deadline deadline) = 0;
  // Errors: corrupt/io (a page could not be proved), gone, canceled.
  virtual Result<void> finish() = 0;
  // The order of first touches. After finish().
  virtual const TouchRecord& touches() const = 0;
  virtual void request_stop() = 0;
  virtual RestoreStats stats() const = 0;

  // Its guest never ran: ends the process, if there is one. stats() and the supply are not used afterwards.
  virtual void end() = 0;

 protected:
  DestinationVmm(const VmManifest& manifest, const DestinationPlan& plan, const Clock& clock)
      : manifest_(manifest), plan_(plan), clock_(clock) {}

  const VmManifest manifest_;
  const DestinationPlan plan_;
  const Clock& clock_;
  ProcessIdentity process_;
  nlohmann::json machine_;
};

}  // namespace pageferry
