// QemuSourceVmm: a running QEMU as a SourceVmm: its monitor, its process, its disks, and QemuCapture.
//
// Thread rule and lifetime: source_vmm.h.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "vmstate/qmp_client.h"
#include "vmstate/source_vmm.h"

namespace pageferry {

class QemuSourceVmm final : public SourceVmm {
 public:
  // Errors: those of QmpClient::connect and read_qemu_process; invalid when there is neither a name nor a UUID.
  static Result<std::unique_ptr<QemuSourceVmm>> connect(const std::string& qmp_socket,
                                                        const std::string& name,
                                                        const Clock& clock);

  Result<std::vector<Finding>> preflight(DestinationHost destination) override;
  std::vector<Finding> judge_command() override;
  Result<std::uint64_t> memory_bytes() override;
  Result<std::unique_ptr<Capture>> make_capture(PageSink& sink, CaptureObserver& observer,
                                                const CaptureOptions& options) override;
  Result<void> describe(VmManifest& manifest) override;
  Result<std::vector<std::string>> differences(const nlohmann::json& destination) override;
  Result<std::vector<std::string>> disk_files() override;
  // Only an event stream that was unbroken up to `completed` proves that the stopped guest is the one that was captured.
  bool image_is_certain() const override { return qmp_->unbroken(); }
  Result<void> resume(std::uint64_t epoch) override;
  Result<std::vector<HostForward>> host_forwards() override;
  Result<void> end() override;
  void disconnect() override { qmp_.reset(); }

 private:
  QemuSourceVmm(SourceFacts facts, std::unique_ptr<QmpClient> qmp, const Clock& clock)
      : SourceVmm(std::move(facts)), qmp_(std::move(qmp)), clock_(clock) {}

  std::unique_ptr<QmpClient> qmp_;
  const Clock& clock_;
};

}  // namespace pageferry
