// QemuDestinationVmm: a QEMU that takes a guest: the source's own command line, rewritten, and QemuRestore.
//
// Thread rule and lifetime: destination_vmm.h.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "vmstate/destination_vmm.h"
#include "vmstate/device_state.h"
#include "vmstate/qemu_spawn.h"

namespace pageferry {

class QemuDestinationVmm final : public DestinationVmm {
 public:
  QemuDestinationVmm(const VmManifest& manifest, const DestinationPlan& plan, const Clock& clock)
      : DestinationVmm(manifest, plan, clock) {}

  Result<void> start(Deadline deadline) override;
  nlohmann::json where() const override;
  std::vector<std::string> differences() const override;
  bool claims_before_load() const override;
  Result<void> prepare(std::span<const std::byte> prepare_file, Deadline deadline) override;
  const MemoryLayout& layout() const override { return state_.layout; }
  void follow(const TouchRecord& record) override { restore_->follow(record); }
  Result<void> take_state(std::span<const std::byte> state_file) override;
  Result<void> load(PageSupply& supply, Deadline deadline) override;
  Result<void> resume(std::uint64_t epoch, Deadline deadline) override;
  void begin_prefetch() override { restore_->begin_prefetch(QemuRestore::GuestIs::resumed); }
  Result<void> announce(Deadline deadline) override { return restore_->announce_self(deadline); }
  Result<void> add_forwards(const std::vector<HostForward>& forwards, Deadline deadline) override;
  Result<void> finish() override { return restore_->finish(); }
  const TouchRecord& touches() const override { return restore_->touches(); }
  void request_stop() override;
  RestoreStats stats() const override { return restore_ ? restore_->stats() : RestoreStats{}; }
  void end() override;

 private:
  Result<DestinationCommand> make_command() const;

  DestinationCommand command_;
  RunningQemu vmm_;
  QemuState state_;
  std::unique_ptr<QemuRestore> restore_;
};

}  // namespace pageferry
