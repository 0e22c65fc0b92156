// QemuCapture: we are the migration peer of a running, unmodified QEMU. QEMU tracks dirty pages and
// streams them; we put each page into a PageSink and keep the device state opaque. We, not luck,
// decide when the guest is stopped.
//
// Order of calls (each once; a failure at any point before commit_source() leaves the guest running
// at the source after abort()):
//
//   start()          set capabilities and parameters, getfd, migrate; returns once configuration and
//                    RAM block list are known
//   run_brownout()   passes while the guest runs, until it converges and the observer permits the
//                    switch; returns with the guest stopped (state pre-switchover)
//   run_blackout()   last dirty pages and device state; returns with QEMU waiting for SHUT (guest
//                    stopped, disks inactive)
//   commit_source()  sends SHUT(0), waits until QMP says `completed`: from here QEMU cannot resume
//                    by itself
//   abort()          any time before commit_source(): closes the stream / migrate_cancel, waits
//                    until the guest is as it was before
//
// Sources: QEMU docs/devel/migration, and qemu-migration-stream facts in
// docs/qemu-migration-stream.md of this project.
//
// Thread rule: calls from one thread; request_stop() and stats() from any. The sink is used by one
// thread of the capture's own, from start() until run_blackout() or abort() has returned, whatever
// they return; an error of the sink is returned by the call that runs. Lifetime: the QmpClient, the
// PageSink and the observer outlive the capture. Destroying an unfinished capture aborts it.
#pragma once

#include <memory>

#include "pager/page_sink.h"
#include "transport/os/error.h"
#include "vmstate/capture.h"
#include "vmstate/device_state.h"
#include "vmstate/qmp_client.h"

namespace pageferry {

class QemuCapture : public Capture {
 public:
  static Result<std::unique_ptr<QemuCapture>> create(QmpClient& qmp, PageSink& sink,
                                                     CaptureObserver& observer,
                                                     CaptureOptions options);

  // Valid after start(): machine_type, configuration, layout. Complete after run_blackout().
  virtual const QemuState& state() const = 0;
};

}  // namespace pageferry
