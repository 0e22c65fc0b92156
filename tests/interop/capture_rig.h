// CaptureRig: a capture of a QemuUnderTest into memory, and the comparison of what was captured with the memory of the stopped guest.
//
// Thread rule: one thread; the observer's answers may be changed from any.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "fakes/memory_page_sink.h"
#include "interop/qemu_under_test.h"
#include "vmstate/qemu_capture.h"

namespace pageferry::testing_support {

class ScriptedObserver final : public CaptureObserver {
 public:
  Verdict on_progress(const Progress& progress) override {
    ++reports;
    return at_report ? at_report(progress) : Verdict::go_on;
  }
  bool may_switch() override { return permitted; }
  Verdict on_not_converging(const Progress&) override { return Verdict::switch_now; }

  std::atomic<bool> permitted{true};
  std::atomic<int> reports{0};
  std::function<Verdict(const Progress&)> at_report;
};

// Part of a RAM block and where the guest sees it.
struct MappedRange {
  std::string block;
  std::uint64_t block_offset = 0;
  std::uint64_t guest_address = 0;
  std::uint64_t bytes = 0;
};

struct CaptureRig {
  explicit CaptureRig(QemuUnderTest& under_test, CaptureOptions options = {}) : qemu(under_test) {
    capture = std::move(*QemuCapture::create(qemu.qmp(), sink, observer, options));
  }
  // All the way to QEMU waiting for SHUT.
  Result<void> run_to_complete();
  // The captured bytes of `range` against QEMU's own dump of the guest's memory; the guest must be stopped. Empty: equal.
  std::string difference(const MappedRange& range);

  QemuUnderTest& qemu;
  fakes::MemoryPageSink sink;
  ScriptedObserver observer;
  std::unique_ptr<QemuCapture> capture;
};

// Capabilities and parameters of a migration, as text to compare.
std::string migration_settings(QmpClient& qmp);

}  // namespace pageferry::testing_support
