// HookDestinationVmm: a VMM with a hook that takes a guest: started by the manifest's incoming command or the user's, and HookRestore.
//
// Thread rule and lifetime: destination_vmm.h.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "vmstate/destination_vmm.h"
#include "vmstate/hook_client.h"
#include "vmstate/hook_restore.h"
#include "vmstate/hook_state.h"
#include "vmstate/qemu_spawn.h"

namespace pageferry {

// Our name for the socket of a hook in a run directory.
inline constexpr std::string_view kHookSocketName = "pageferry-hook.sock";

// What is run: the words of the manifest's command with {socket} replaced, or the user's command by a shell. Errors: invalid, one line:
// neither is given, or no {socket} is in it. Pure.
struct HookCommand {
  LaunchKind kind = LaunchKind::qemu;
  std::vector<std::string> argv;
};
Result<HookCommand> make_hook_command(const std::vector<std::string>& manifest_command,
                                      const std::string& user_command, const std::string& socket);

class HookDestinationVmm final : public DestinationVmm {
 public:
  HookDestinationVmm(const VmManifest& manifest, const DestinationPlan& plan, const Clock& clock)
      : DestinationVmm(manifest, plan, clock) {}

  Result<void> start(Deadline deadline) override;
  nlohmann::json where() const override;
  std::vector<std::string> differences() const override;
  bool claims_before_load() const override { return false; }
  Result<void> prepare(std::span<const std::byte>, Deadline) override { return {}; }
  const MemoryLayout& layout() const override { return restore_->vm().layout; }
  void follow(const TouchRecord& record) override { restore_->follow(record); }
  Result<void> take_state(std::span<const std::byte> state_file) override;
  Result<void> load(PageSupply& supply, Deadline deadline) override;
  Result<void> resume(std::uint64_t epoch, Deadline deadline) override;
  void begin_prefetch() override { restore_->begin_prefetch(); }
  // A VMM announces its own guest when it resumes it.
  Result<void> announce(Deadline) override { return {}; }
  Result<void> add_forwards(const std::vector<HostForward>&, Deadline) override { return {}; }
  Result<void> finish() override { return restore_->finish(); }
  const TouchRecord& touches() const override { return restore_->touches(); }
  void request_stop() override;
  RestoreStats stats() const override { return restore_ ? restore_->stats() : RestoreStats{}; }
  void end() override;

 private:
  std::string socket_;
  HookDeviceState state_;
  std::unique_ptr<HookRestore> restore_;
};

}  // namespace pageferry
