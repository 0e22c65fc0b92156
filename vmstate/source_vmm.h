// SourceVmm: the running VMM whose guest is to be moved, as the migration sequences see it, whatever kind it is. Each method is one
// thing that only the VMM can answer or do; when it is asked or done is the sequences' business (docs/ownership-protocol.md).
//
//   qemu:QMP_SOCKET   QemuSourceVmm   QMP and QEMU's migration stream
//   hook:SOCKET       HookSourceVmm   the VMM hook (docs/hook-protocol.md)
//
// Thread rule: one thread at a time. Lifetime: owns its connection; captures that it made end before it.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/capture.h"
#include "vmstate/manifest.h"
#include "vmstate/qemu_host_forwards.h"
#include "vmstate/qemu_preflight.h"
#include "vmstate/qemu_process.h"
#include "vmstate/vm_address.h"

namespace pageferry {

struct SourceFacts {
  std::string name;     // on the store
  std::string uuid;     // all zeros when it has none
  std::string version;  // of the VMM, for people
  std::string run_state;
  bool running = true;  // the guest; else it was paused before
  // Id of the attempt that it was restored from, if the VMM knows every page written since; else empty.
  std::string tracked_since_attempt;
  VmmProcess process;
};

class SourceVmm {
 public:
  virtual ~SourceVmm() = default;

  const SourceFacts& facts() const { return facts_; }

  // Everything that speaks against moving it: its own state and devices, who manages it, userfaultfd for its user. Touches nothing.
  virtual Result<std::vector<Finding>> preflight(DestinationHost destination) = 0;
  // Whether a destination's command can be made.
  virtual std::vector<Finding> judge_command() = 0;

  virtual Result<std::uint64_t> memory_bytes() = 0;
  virtual Result<std::unique_ptr<Capture>> make_capture(PageSink& sink, CaptureObserver& observer,
                                                        const CaptureOptions& options) = 0;
  // Adds what a destination needs to start the same machine. After the capture's start().
  virtual Result<void> describe(VmManifest& manifest) = 0;
  // What differs between this machine as it is now and a destination's description of itself. Empty: the same.
  virtual Result<std::vector<std::string>> differences(const nlohmann::json& destination) = 0;
  // Of its disks that can be written. The guest is stopped.
  virtual Result<std::vector<std::string>> disk_files() = 0;

  // After commit_source(): the guest has certainly not run since it was captured.
  virtual bool image_is_certain() const = 0;
  // Continues the stopped guest as epoch `epoch`, whose running record is durable.
  virtual Result<void> resume(std::uint64_t epoch) = 0;
  virtual Result<std::vector<HostForward>> host_forwards() = 0;
  // Ends the process; the guest runs elsewhere. Errors: timeout (it does not die).
  virtual Result<void> end() = 0;
  // Nobody may stand in the way of another connection.
  virtual void disconnect() = 0;

 protected:
  explicit SourceVmm(SourceFacts facts) : facts_(std::move(facts)) {}

 private:
  const SourceFacts facts_;
};

// `look`: beside somebody who moves it, where the VMM has room for that; no capture then.
enum class VmmUse : std::uint8_t { move, look };

// Connects and asks who it is. `name`: on the store; empty: the VMM's own (QEMU: the UUID). Errors: not_found, busy, vmm, gone;
// invalid: it has no name that can be used.
Result<std::unique_ptr<SourceVmm>> connect_source_vmm(const VmAddress& address,
                                                      const std::string& name, VmmUse use,
                                                      const Clock& clock);

}  // namespace pageferry
