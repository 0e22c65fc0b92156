// The class behind QemuRestore: shared by qemu_restore.cc (a restore from its beginning to its end) and qemu_restore_attach.cc (the
// other beginning: a recovery).
//
// Thread rule and lifetime: see qemu_restore.h.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "vmstate/qemu_memory_map.h"
#include "vmstate/qemu_page_channels.h"
#include "vmstate/qemu_restore.h"
#include "vmstate/qemu_restore_loop.h"
#include "vmstate/qemu_return_path_reader.h"

namespace pageferry {

// Between two questions to QEMU about a state that it reports by no event.
inline constexpr Nanoseconds kAskAgain = std::chrono::microseconds(500);

class RealQemuRestore final : public QemuRestore {
 public:
  RealQemuRestore(QmpClient& qmp, RestoreOptions options)
      : qmp_(&qmp), qemu_version_(qmp.qemu_version()), options_(std::move(options)) {}
  RealQemuRestore(QemuMemoryMap map, RestoreOptions options)
      : map_(std::move(map)), qemu_version_(map_->qemu_version), options_(std::move(options)) {}

  Result<void> prepare(const QemuState& state, Deadline deadline) override;
  void follow(const TouchRecord& record) override { recorded_ = record.runs(); }
  Result<void> load_devices(const QemuState& state, PageSupply& supply, Deadline deadline) override;
  Result<void> attach(const QemuState& state, PageSupply& supply, Deadline deadline) override;
  void use_monitor(QmpClient& qmp) override { qmp_ = &qmp; }
  void begin_prefetch(GuestIs guest) override;
  Result<void> announce_self(Deadline deadline) override;
  Result<void> finish() override;
  const TouchRecord& touches() const override { return touches_; }
  void request_stop() override;
  RestoreStats stats() const override;

 private:
  Result<void> look_at_memory(const MemoryLayout& captured, PagePlacement wanted,
                              Deadline deadline);
  Result<void> keep_memory_map(Deadline deadline);
  Result<void> set_up_destination(Deadline deadline);
  Result<void> open_channels(Deadline deadline);
  Result<void> expect_pong(std::uint32_t value, Deadline deadline);
  Result<std::string> migration_status(Deadline deadline);
  Unexpected explain(Error error, Deadline deadline);
  PageInOptions page_in_options();
  enum class FirstPace : std::uint8_t { held, full };
  Result<void> start_loop(PageSupply& supply, SentMap sent, FirstPace pace);
  Result<void> wait_until_paused(Deadline deadline);
  Result<void> wait_until_completed(Deadline deadline);
  Result<void> leave_nothing_behind();
  Result<void> make_recoverable(Deadline deadline);
  Result<void> attach_out_of_band(const MemoryLayout& captured, PageSupply& supply,
                                  Deadline deadline);
  Result<void> recover(QmpCommands& commands, Deadline deadline);
  Result<void> recover_from_any_state(QmpCommands& commands, Deadline deadline);
  Result<void> go_on(PageSupply& supply, Deadline deadline);
  Result<SentMap> ask_what_is_there(Deadline deadline);
  Result<void> resume(Deadline deadline);
  Unexpected loop_failure(QemuRestoreLoop::Event event);

  // A channel for urgent pages is of use only where pages travel in channels.
  bool preempt() const {
    return qemu_version_ >= kQemuWithPreempt && placement_ == PagePlacement::stream;
  }

  QmpClient* qmp_ = nullptr;          // null: it does not answer yet
  std::optional<QemuMemoryMap> map_;  // what is known without it
  int qemu_version_;
  RestoreOptions options_;
  MonotonicClock clock_;
  MemoryLayout layout_;  // the destination's; channels and loop refer to it
  std::atomic<PagePlacement> placement_{PagePlacement::automatic};
  std::optional<QemuMemoryAccess> memory_;  // until the loop has it
  std::optional<QemuPageChannels> channels_;
  std::optional<QemuReturnPathReader> return_path_;
  std::vector<PageRun> early_requests_;  // came before the loop
  bool already_completed_ = false;       // attach() found nothing left to do
  bool prefetch_begun_ = false;
  std::vector<PageRun> recorded_;  // until the loop has it
  TouchRecord touches_;            // the loop's, when it has ended
  std::unique_ptr<QemuRestoreLoop> loop_;

  // for the methods that any thread may call:
  std::atomic<QemuRestoreLoop*> loop_view_{nullptr};  // loop_, once it runs
  std::atomic<std::uint64_t> pages_total_{0};
  std::atomic<bool> stop_requested_{false};
};

}  // namespace pageferry
