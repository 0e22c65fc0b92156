// QemuRestore: we are the migration source of an unmodified destination QEMU (started with -S
// -incoming defer, postcopy-ram). It asks for pages, we send them from a PageSupply, and send the
// rest unasked, demand first.
//
// Order of calls:
//   prepare()         capabilities, migrate-incoming, connect (two channels where postcopy-preempt
//                     helps), header, configuration, ADVISE, RAM block list, RAM_DISCARD: everything
//                     that needs only the block list; done while the source still runs
//   load_devices()    PACKAGED (LISTEN, device sections, RUN); from here pages can be asked for: the
//                     loop starts. Returns when the destination is `paused` in postcopy-active
//   (caller: owner, running records, `cont` by QMP)
//   begin_prefetch()  now nothing is held back for the switch any more
//   finish()          serves until every page is at the destination and QMP says completed
//   or attach()       instead of prepare/load_devices: recovery after a pager died (postcopy-paused,
//                     migrate-recover, RECV_BITMAP)
//
// The loop runs in its own thread from load_devices() or attach() on; it alone touches the supply
// and the channels.
//
// Thread rule: calls from one thread; stats() and request_stop() from any.
// Lifetime: QmpClient and PageSupply outlive the restore; the memory map is copied.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "pager/page_supply.h"
#include "pager/prefetch_order.h"
#include "pager/prefetch_window.h"
#include "pager/touch_record.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/device_state.h"
#include "vmstate/qemu_memory_map.h"
#include "vmstate/qemu_placement.h"
#include "vmstate/qmp_client.h"

namespace pageferry {

struct RestoreOptions {
  PagePlacement placement = PagePlacement::automatic;
  PrefetchOrder order = PrefetchOrder::hot;
  std::uint64_t prefetch_bytes_in_flight_max = kPrefetchWindowBytesUsual;
  std::uint64_t prefetch_bandwidth_bytes_per_s = 0;  // 0 = no limit of its own
  std::string channel_socket_path;  // where the destination QEMU shall listen; the caller made the
                                    // directory (0700, owned by QEMU's user)
  // Where prepare() keeps the memory map, and finish() removes it (qemu_memory_map.h). "": nowhere.
  std::string run_directory{};
  // A monitor at which prepare() may leave a connection for a later pager, where pages come in the stream (qemu_out_of_band.h). "":
  // there is none.
  std::string out_of_band_socket_path{};
};

struct RestoreStats {
  PagePlacement placement = PagePlacement::automatic;  // direct or stream, once it is known
  std::uint64_t pages_total = 0;
  std::uint64_t pages_demand = 0;
  std::uint64_t pages_prefetched = 0;
  std::uint64_t pages_zero = 0;
  std::uint64_t faults = 0;               // requests that had to be served (not already sent)
  std::uint64_t faults_already_sent = 0;  // requests that crossed their page in flight
  // request read -> page in QEMU's memory, or handed to the channel's socket
  std::uint64_t fault_p50_us = 0;
  std::uint64_t fault_p99_us = 0;
  std::uint64_t fault_max_us = 0;
};

class QemuRestore {
 public:
  static Result<std::unique_ptr<QemuRestore>> create(QmpClient& qmp, RestoreOptions options);
  // For attach() to a QEMU whose monitor does not answer. unsupported: that map does not say how.
  static Result<std::unique_ptr<QemuRestore>> create_without_monitor(const QemuMemoryMap& map,
                                                                     RestoreOptions options);
  virtual ~QemuRestore() = default;

  // `state` needs machine_type, configuration and layout only. Errors: vmm (with QEMU's words),
  // timeout, gone.
  virtual Result<void> prepare(const QemuState& state, Deadline deadline) = 0;
  // What PrefetchOrder::recorded follows, of a guest with these blocks; without it that order is as hot. Before load_devices().
  virtual void follow(const TouchRecord& record) = 0;
  // `state` now complete. The supply's layout must equal the prepared one, else invalid.
  virtual Result<void> load_devices(const QemuState& state, PageSupply& supply,
                                    Deadline deadline) = 0;
  virtual Result<void> attach(const QemuState& state, PageSupply& supply, Deadline deadline) = 0;
  // After create_without_monitor() and attach(): it answers now. Before announce_self() and finish().
  virtual void use_monitor(QmpClient& qmp) = 0;
  enum class GuestIs : std::uint8_t { resumed, paused };
  // After load_devices(): until this is said, hardly more than what is asked for is brought in, so that nothing takes the CPU
  // from loading the devices. A resumed guest has the CPUs for itself for another moment. finish() says it if nobody has.
  virtual void begin_prefetch(GuestIs guest) = 0;
  // Tells the network where the guest is now (prepare() kept QEMU from doing so too early). After
  // `cont`.
  virtual Result<void> announce_self(Deadline deadline) = 0;
  // Errors: corrupt/io (a page could not be proved: the guest was stopped with QMP `stop`, the
  // message names block, offset, gpa-like index), gone (destination QEMU ended), canceled. After an
  // error the destination's guest waits (postcopy-paused), it never reads a wrong page.
  virtual Result<void> finish() = 0;
  // The order of first touches. After finish().
  virtual const TouchRecord& touches() const = 0;
  virtual void request_stop() = 0;
  virtual RestoreStats stats() const = 0;
};

}  // namespace pageferry
