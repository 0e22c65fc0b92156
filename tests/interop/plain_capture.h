// plain_capture: pages and device state of a running QEMU, by the shortest way: one `migrate` into
// a socket pair, with QEMU itself deciding when to switch. It lets the restore be tested and
// measured alone; the product's capture is QemuCapture.
//
// A new pass is recognised by page numbers that start over.
//
// Thread rule: one thread.
#pragma once

#include "pager/page_sink.h"
#include "transport/os/error.h"
#include "vmstate/device_state.h"
#include "vmstate/qmp_client.h"

namespace pageferry::testing_support {

// The source ends in postmigrate; `sink` has every page.
Result<QemuState> plain_capture(QmpClient& source, PageSink& sink);

}  // namespace pageferry::testing_support
