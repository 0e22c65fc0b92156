// HookSourceVmm: a running VMM with a hook as a SourceVmm: its connection, its memory, and HookCapture.
//
// Thread rule and lifetime: source_vmm.h. The memory stays mapped as long as it lives: a sink that it was lent to ends before it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "vmstate/hook_client.h"
#include "vmstate/hook_memory.h"
#include "vmstate/source_vmm.h"

namespace pageferry {

class HookSourceVmm final : public SourceVmm {
 public:
  // Errors: those of HookClient::connect; invalid: the VM's name cannot be one on a store.
  static Result<std::unique_ptr<HookSourceVmm>> connect(const std::string& socket,
                                                        const std::string& name, VmmUse use,
                                                        const Clock& clock);

  Result<std::vector<Finding>> preflight(DestinationHost destination) override;
  std::vector<Finding> judge_command() override;
  Result<std::uint64_t> memory_bytes() override { return client_->vm().layout.bytes(); }
  Result<std::unique_ptr<Capture>> make_capture(PageSink& sink, CaptureObserver& observer,
                                                const CaptureOptions& options) override;
  Result<void> describe(VmManifest& manifest) override;
  Result<std::vector<std::string>> differences(const nlohmann::json& destination) override;
  // The hook names none.
  Result<std::vector<std::string>> disk_files() override { return std::vector<std::string>(); }
  // After a commit the VMM resumes nothing by itself.
  bool image_is_certain() const override { return true; }
  Result<void> resume(std::uint64_t epoch) override;
  Result<std::vector<HostForward>> host_forwards() override { return std::vector<HostForward>(); }
  Result<void> end() override;
  void disconnect() override {
    memory_.reset();  // it looks into the client
    client_.reset();
  }

 private:
  HookSourceVmm(SourceFacts facts, std::unique_ptr<HookClient> client, std::string socket,
                const Clock& clock)
      : SourceVmm(std::move(facts)),
        client_(std::move(client)),
        socket_(std::move(socket)),
        clock_(clock) {}

  std::unique_ptr<HookClient> client_;
  const std::string socket_;  // absolute
  std::unique_ptr<HookMemory> memory_;
  const Clock& clock_;
};

}  // namespace pageferry
