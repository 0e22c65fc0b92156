// The restore's sequence (that of a recovery begins in qemu_restore_attach.cc); the loop that serves pages is in qemu_restore_loop.cc,
// the order of records and the traps behind it in docs/qemu-migration-stream.md.
//
// Two traps decide the shape of prepare(): RAM_DISCARD must come before LISTEN (else the
// destination hangs), and everything up to there is done and acknowledged (PING/PONG) while the
// source still runs, so that load_devices() sends one package.
#include "vmstate/qemu_restore.h"

#include <fmt/format.h>

#include <thread>
#include <utility>

#include "vmstate/qemu_out_of_band.h"
#include "vmstate/qemu_process.h"
#include "vmstate/qemu_restore_impl.h"
#include "vmstate/qemu_stream_writer.h"
#include "vmstate/run_directory.h"

namespace pageferry {
namespace {

using nlohmann::json;

constexpr int kQemu91 = 90100;  // migrate-incoming takes exit-on-error
constexpr std::uint32_t kPreparedPing = 2;
constexpr Milliseconds kStopBound{5000};
// In the stream prefetch is gentle for so long after the guest was resumed.
constexpr Milliseconds kSettleTime{60};
constexpr Milliseconds kCompleteBound{30000};

json capability(const char* name) {
  return {{"capability", name}, {"state", true}};
}

std::string text_at(const json& object, const char* key) {
  const auto value = object.find(key);
  return value != object.end() && value->is_string() ? value->get<std::string>() : std::string();
}

}  // namespace

Result<void> RealQemuRestore::look_at_memory(const MemoryLayout& captured, PagePlacement wanted,
                                             Deadline deadline) {
  auto chosen = choose_placement(*qmp_, captured, wanted, deadline);
  if (!chosen) return tl::make_unexpected(std::move(chosen).error());
  layout_ = std::move(chosen->layout);
  pages_total_ = layout_.pages();
  placement_ = chosen->placement;
  memory_ = std::move(chosen->access);
  return {};
}

// For a pager that comes after us and finds that the monitor does not answer.
Result<void> RealQemuRestore::keep_memory_map(Deadline deadline) {
  if (options_.run_directory.empty()) return {};
  QemuMemoryMap map;
  PF_ASSIGN(map.process, identify_process(qmp_->peer().pid));
  map.qemu_version = qemu_version_;
  map.placement = placement_;
  map.layout = layout_;
  if (memory_) {
    map.block_addresses = memory_->block_addresses();
  } else if (!options_.out_of_band_socket_path.empty()) {
    PF_ASSIGN(map.out_of_band_inode,
              QemuOutOfBand::leave(*qmp_, options_.out_of_band_socket_path, deadline));
  }
  return write_memory_map(options_.run_directory, map);
}

Result<void> RealQemuRestore::set_up_destination(Deadline deadline) {
  PF_ASSIGN(const json status, qmp_->execute("query-status", json::object(), deadline));
  if (text_at(status, "status") != "inmigrate") {
    return fail(Errc::invalid,
                fmt::format("the destination QEMU is in state '{}', not waiting for a migration "
                            "(-incoming defer)",
                            text_at(status, "status")));
  }
  json capabilities = json::array({capability("events"), capability("postcopy-ram")});
  if (preempt()) capabilities.push_back(capability("postcopy-preempt"));
  PF_TRY(qmp_->execute("migrate-set-capabilities", {{"capabilities", capabilities}}, deadline));
  // QEMU would announce the guest's MAC when the package is loaded, before the guest may run.
  PF_TRY(qmp_->execute("migrate-set-parameters", {{"announce-rounds", 0}}, deadline));
  return {};
}

Result<void> RealQemuRestore::open_channels(Deadline deadline) {
  json arguments = {{"uri", "unix:" + options_.channel_socket_path}};
  // So that it lives on to say why, instead of ending.
  if (qemu_version_ >= kQemu91) arguments["exit-on-error"] = false;
  PF_TRY(qmp_->execute("migrate-incoming", arguments, deadline));
  PF_ASSIGN(channels_, QemuPageChannels::connect(options_.channel_socket_path, layout_));
  if (preempt()) PF_TRY(channels_->connect_urgent());
  return_path_.emplace(channels_->main_fd(), layout_);
  return {};
}

Result<void> RealQemuRestore::prepare(const QemuState& state, Deadline deadline) {
  PF_CHECK(!channels_ && !loop_);
  PF_TRY(look_at_memory(state.layout, options_.placement, deadline));
  PF_TRY(keep_memory_map(deadline));
  PF_TRY(set_up_destination(deadline));
  PF_TRY(open_channels(deadline));
  ByteBuffer bytes;
  qemu_stream::append_file_header(bytes);
  qemu_stream::append_configuration(bytes, state.configuration);
  qemu_stream::append_open_return_path(bytes);
  qemu_stream::append_postcopy_advise(bytes, layout_);
  qemu_stream::append_ram_start(bytes, layout_);
  qemu_stream::append_ram_discard_all(bytes, layout_);
  qemu_stream::append_ping(bytes, kPreparedPing);
  auto accepted = channels_->write(bytes, deadline);
  if (accepted) accepted = expect_pong(kPreparedPing, deadline);
  if (!accepted) return explain(std::move(accepted).error(), deadline);
  return {};
}

Result<void> RealQemuRestore::expect_pong(std::uint32_t value, Deadline deadline) {
  for (;;) {
    if (stop_requested_) return fail(Errc::canceled, "the restore was asked to stop");
    PF_ASSIGN(const auto message, return_path_->next(deadline));
    const auto* pong = std::get_if<qemu_stream::Pong>(&message);
    if (pong != nullptr && pong->value == value) return {};
  }
}

Result<std::string> RealQemuRestore::migration_status(Deadline deadline) {
  PF_ASSIGN(const json info, qmp_->execute("query-migrate", json::object(), deadline));
  return text_at(info, "status");
}

// Adds what QEMU itself says about a failure, where it still can.
Unexpected RealQemuRestore::explain(Error error, Deadline deadline) {
  if (qmp_ == nullptr) return Unexpected(std::move(error));
  const auto info = qmp_->execute("query-migrate", json::object(), deadline);
  if (!info) {
    error.message += fmt::format(" (and its monitor: {})", info.error().message);
    return Unexpected(std::move(error));
  }
  const std::string words = text_at(*info, "error-desc");
  error.message += fmt::format(" (the destination's migration is '{}'{}{})",
                               text_at(*info, "status"), words.empty() ? "" : ": ", words);
  if (!words.empty()) error.code = Errc::vmm;
  return Unexpected(std::move(error));
}

PageInOptions RealQemuRestore::page_in_options() {
  return {.order = options_.order,
          .recorded = std::move(recorded_),
          .recording = TouchRecording::on,
          .prefetch_bytes_in_flight_max = options_.prefetch_bytes_in_flight_max,
          .prefetch_bandwidth_bytes_per_s = options_.prefetch_bandwidth_bytes_per_s};
}

Result<void> RealQemuRestore::start_loop(PageSupply& supply, SentMap sent, FirstPace pace) {
  PF_ASSIGN(loop_, QemuRestoreLoop::make(std::move(*channels_), std::move(*return_path_), supply,
                                         layout_, std::move(sent), page_in_options(),
                                         std::exchange(memory_, std::nullopt)));
  channels_.reset();
  return_path_.reset();
  for (const PageRun& run : std::exchange(early_requests_, {})) loop_->add_request(run);
  if (pace == FirstPace::held) loop_->hold_prefetch();
  loop_->start();
  loop_view_.store(loop_.get(), std::memory_order_release);
  if (stop_requested_) loop_->request_stop();
  return {};
}

Result<void> RealQemuRestore::load_devices(const QemuState& state, PageSupply& supply,
                                           Deadline deadline) {
  PF_CHECK(channels_.has_value());
  PF_TRY(layout_.check_same_blocks(supply.layout()));
  ByteBuffer bytes;
  PF_TRY(qemu_stream::append_packaged(
      bytes, qemu_stream::build_device_package(state.device_sections,
                                               QemuRestoreLoop::kDevicesLoadedPing)));
  auto written = channels_->write(bytes, deadline);
  if (!written) return explain(std::move(written).error(), deadline);
  // From here pages are asked for: devices read guest memory while they load.
  PF_TRY(start_loop(supply, SentMap(layout_.pages()), FirstPace::held));
  const auto event = loop_->wait(QemuRestoreLoop::Event::devices_loaded, deadline);
  if (!event) {
    return explain(Error{.code = Errc::timeout,
                         .sys_errno = 0,
                         .message = "the destination QEMU did not load the device state in time"},
                   deadline);
  }
  if (event == QemuRestoreLoop::Event::failed) return explain(loop_->error(), deadline);
  if (event == QemuRestoreLoop::Event::page_unproved) return loop_failure(*event);
  return wait_until_paused(deadline);
}

void RealQemuRestore::begin_prefetch(GuestIs guest) {
  PF_CHECK(loop_ != nullptr);
  // Into memory, prefetch takes little from the guest and saves it faults.
  const bool settle = guest == GuestIs::resumed && placement_ == PagePlacement::stream;
  loop_->release_prefetch(settle ? Nanoseconds(kSettleTime) : Nanoseconds(0));
  prefetch_begun_ = true;
}

// The devices are loaded; RUN is behind them, and QEMU reports its effect by no event when it stays
// paused.
Result<void> RealQemuRestore::wait_until_paused(Deadline deadline) {
  for (;;) {
    PF_ASSIGN(const json status, qmp_->execute("query-status", json::object(), deadline));
    const std::string runstate = text_at(status, "status");
    if (runstate == "paused") return {};
    if (runstate != "inmigrate") {
      return fail(Errc::vmm, fmt::format("the destination QEMU is '{}' after its state was loaded, "
                                         "must be 'paused' (was it started with -S?)",
                                         runstate));
    }
    if (deadline.passed()) {
      return fail(Errc::timeout, "the destination QEMU is still in state 'inmigrate'");
    }
    std::this_thread::sleep_for(kAskAgain);
  }
}

Result<void> RealQemuRestore::announce_self(Deadline deadline) {
  // QEMU's own defaults of the announce-* parameters.
  const json arguments = {{"initial", 50}, {"max", 550}, {"rounds", 5}, {"step", 100}};
  PF_TRY(qmp_->execute("announce-self", arguments, deadline));
  return {};
}

Result<void> RealQemuRestore::finish() {
  if (already_completed_) return leave_nothing_behind();
  PF_CHECK(loop_ != nullptr && qmp_ != nullptr);
  if (!prefetch_begun_) begin_prefetch(GuestIs::paused);
  const auto event = loop_->wait(QemuRestoreLoop::Event::all_received, Deadline::never());
  if (event != QemuRestoreLoop::Event::all_received) return loop_failure(*event);
  touches_ = loop_->touches();
  PF_TRY(wait_until_completed(Deadline::after(clock_, kCompleteBound)));
  return leave_nothing_behind();
}

// What we switched on would stand in the way of the guest's next move, and nobody needs to know any more where its memory is.
Result<void> RealQemuRestore::leave_nothing_behind() {
  if (!options_.run_directory.empty()) {
    PF_TRY(remove_run_file(options_.run_directory, kMemoryMapFileName));
  }
  if (placement_ == PagePlacement::stream)
    PF_TRY(QemuOutOfBand::remove(*qmp_, Deadline::after(clock_, kStopBound)));
  json capabilities = json::array();
  if (preempt()) capabilities.push_back({{"capability", "postcopy-preempt"}, {"state", false}});
  capabilities.push_back({{"capability", "postcopy-ram"}, {"state", false}});
  PF_TRY(qmp_->execute("migrate-set-capabilities", {{"capabilities", capabilities}},
                       Deadline::after(clock_, kStopBound)));
  return {};
}

// Turns the end of the loop into an error. A guest with a page that cannot be proved is stopped.
Unexpected RealQemuRestore::loop_failure(QemuRestoreLoop::Event event) {
  Error error = loop_->error();
  const Deadline deadline = Deadline::after(clock_, kStopBound);
  if (event != QemuRestoreLoop::Event::page_unproved) {
    if (error.code == Errc::canceled) return Unexpected(std::move(error));
    return explain(std::move(error), deadline);
  }
  const auto stopped = qmp_->execute("stop", json::object(), deadline);
  error.message += stopped ? "; the guest was stopped"
                           : fmt::format("; the guest waits for it ({})", stopped.error().message);
  return Unexpected(std::move(error));
}

Result<void> RealQemuRestore::wait_until_completed(Deadline deadline) {
  for (;;) {
    PF_ASSIGN(const std::string status, migration_status(deadline));
    if (status == "completed") return {};
    if (status == "failed") {
      return explain(Error{.code = Errc::vmm,
                           .sys_errno = 0,
                           .message = "the destination QEMU has every page but failed"},
                     deadline);
    }
    if (deadline.passed()) {
      return fail(Errc::timeout,
                  fmt::format("the destination QEMU has every page but stays '{}'", status));
    }
    std::this_thread::sleep_for(kAskAgain);
  }
}

void RealQemuRestore::request_stop() {
  stop_requested_ = true;
  if (QemuRestoreLoop* loop = loop_view_.load(std::memory_order_acquire)) loop->request_stop();
}

RestoreStats RealQemuRestore::stats() const {
  RestoreStats stats;
  stats.placement = placement_;
  stats.pages_total = pages_total_;
  const QemuRestoreLoop* loop = loop_view_.load(std::memory_order_acquire);
  if (loop == nullptr) return stats;
  const PageInCounters& counters = loop->counters();
  stats.pages_demand = counters.pages_demand;
  stats.pages_prefetched = counters.pages_prefetched;
  stats.pages_zero = counters.pages_zero;
  stats.faults = counters.faults;
  stats.faults_already_sent = counters.faults_already_sent;
  stats.fault_p50_us = loop->fault_latency().percentile_us(500);
  stats.fault_p99_us = loop->fault_latency().percentile_us(990);
  stats.fault_max_us = loop->fault_latency().max_us();
  return stats;
}

Result<std::unique_ptr<QemuRestore>> QemuRestore::create_without_monitor(const QemuMemoryMap& map,
                                                                         RestoreOptions options) {
  if (map.placement != PagePlacement::stream || map.out_of_band_inode == 0) {
    return fail(Errc::unsupported,
                fmt::format("no out-of-band connection was left in QEMU {}", map.process.pid));
  }
  return std::make_unique<RealQemuRestore>(map, std::move(options));
}

Result<std::unique_ptr<QemuRestore>> QemuRestore::create(QmpClient& qmp, RestoreOptions options) {
  return std::make_unique<RealQemuRestore>(qmp, std::move(options));
}

}  // namespace pageferry
