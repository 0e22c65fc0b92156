// The restore's sequence; the loop that serves pages is in qemu_restore_loop.cc, the order of
// records and the traps behind it in docs/qemu-migration-stream.md.
//
// Two traps decide the shape of prepare(): RAM_DISCARD must come before LISTEN (else the
// destination hangs), and everything up to there is done and acknowledged (PING/PONG) while the
// source still runs, so that load_devices() sends one package.
#include "vmstate/qemu_restore.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "vmstate/qemu_memory_map.h"
#include "vmstate/qemu_page_channels.h"
#include "vmstate/qemu_ram_blocks.h"
#include "vmstate/qemu_restore_loop.h"
#include "vmstate/qemu_return_path_reader.h"
#include "vmstate/qemu_stream_writer.h"
#include "vmstate/run_directory.h"

namespace pageferry {
namespace {

using nlohmann::json;

constexpr int kQemu80 =
    80000;  // takes the urgent channel of a recovery late; before: waits for it first
constexpr int kQemu91 = 90100;  // migrate-incoming takes exit-on-error
constexpr std::uint32_t kPreparedPing = 2;
constexpr Milliseconds kStopBound{5000};
// In the stream prefetch is gentle for so long after the guest was resumed.
constexpr Milliseconds kSettleTime{60};
constexpr Milliseconds kCompleteBound{30000};
// Between two questions to QEMU about a state that it reports by no event.
constexpr Nanoseconds kAskAgain = std::chrono::microseconds(500);

json capability(const char* name) {
  return {{"capability", name}, {"state", true}};
}

std::string text_at(const json& object, const char* key) {
  const auto value = object.find(key);
  return value != object.end() && value->is_string() ? value->get<std::string>() : std::string();
}

// Enters a block's received pages into the map. A backing page counts when its first page does:
// QEMU marks all of it at once.
void mark_received(SentMap& sent, const RamBlock& block,
                   const qemu_stream::ReceivedBitmap& bitmap) {
  constexpr std::uint64_t kBits = 8;
  const std::uint64_t unit = pages_of_bytes(block.backing_page_bytes);
  for (std::uint64_t page = 0; page < block.pages(); page += unit) {
    const auto byte = std::to_integer<unsigned>(bitmap.bits[page / kBits]);
    if ((byte >> (page % kBits) & 1U) != 0) sent.mark_received({block.first_page + page, unit});
  }
}

class RealQemuRestore final : public QemuRestore {
 public:
  RealQemuRestore(QmpClient& qmp, RestoreOptions options)
      : qmp_(&qmp), options_(std::move(options)) {}

  Result<void> prepare(const QemuState& state, Deadline deadline) override;
  Result<void> load_devices(const QemuState& state, PageSupply& supply, Deadline deadline) override;
  Result<void> attach(const QemuState& state, PageSupply& supply, Deadline deadline) override;
  void begin_prefetch(GuestIs guest) override;
  Result<void> announce_self(Deadline deadline) override;
  Result<void> finish() override;
  void request_stop() override;
  RestoreStats stats() const override;

 private:
  Result<void> look_at_memory(const MemoryLayout& captured, PagePlacement wanted,
                              Deadline deadline);
  Result<void> keep_memory_map();
  Result<void> set_up_destination(Deadline deadline);
  Result<void> open_channels(Deadline deadline);
  Result<void> expect_pong(std::uint32_t value, Deadline deadline);
  Result<std::string> migration_status(Deadline deadline);
  Unexpected explain(Error error, Deadline deadline);
  PageInOptions page_in_options() const;
  enum class FirstPace : std::uint8_t { held, full };
  Result<void> start_loop(PageSupply& supply, SentMap sent, FirstPace pace);
  Result<void> wait_until_paused(Deadline deadline);
  Result<void> wait_until_completed(Deadline deadline);
  Result<void> leave_nothing_behind();
  Result<void> make_recoverable(Deadline deadline);
  Result<SentMap> ask_what_is_there(Deadline deadline);
  Result<void> resume(Deadline deadline);
  Unexpected loop_failure(QemuRestoreLoop::Event event);

  // A channel for urgent pages is of use only where pages travel in channels.
  bool preempt() const {
    return qmp_->qemu_version() >= kQemuWithPreempt && placement_ == PagePlacement::stream;
  }

  QmpClient* qmp_;
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
  std::unique_ptr<QemuRestoreLoop> loop_;

  // for the methods that any thread may call:
  std::atomic<QemuRestoreLoop*> loop_view_{nullptr};  // loop_, once it runs
  std::atomic<std::uint64_t> pages_total_{0};
  std::atomic<bool> stop_requested_{false};
};

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
Result<void> RealQemuRestore::keep_memory_map() {
  if (options_.run_directory.empty()) return {};
  QemuMemoryMap map;
  PF_ASSIGN(map.process, identify_process(qmp_->peer().pid));
  map.placement = placement_;
  if (memory_) {
    map.layout = layout_;
    map.block_addresses = memory_->block_addresses();
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
  if (qmp_->qemu_version() >= kQemu91) arguments["exit-on-error"] = false;
  PF_TRY(qmp_->execute("migrate-incoming", arguments, deadline));
  PF_ASSIGN(channels_, QemuPageChannels::connect(options_.channel_socket_path, layout_));
  if (preempt()) PF_TRY(channels_->connect_urgent());
  return_path_.emplace(channels_->main_fd(), layout_);
  return {};
}

Result<void> RealQemuRestore::prepare(const QemuState& state, Deadline deadline) {
  PF_CHECK(!channels_ && !loop_);
  PF_TRY(look_at_memory(state.layout, options_.placement, deadline));
  PF_TRY(keep_memory_map());
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

PageInOptions RealQemuRestore::page_in_options() const {
  return {.order = options_.order,
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

// Brings the destination to postcopy-paused, from wherever a dead pager left it.
Result<void> RealQemuRestore::make_recoverable(Deadline deadline) {
  for (;;) {
    PF_ASSIGN(const std::string status, migration_status(deadline));
    if (status == "postcopy-paused" || status == "completed") return {};
    const bool alive = status == "postcopy-active" || status == "postcopy-recover" ||
                       status == "postcopy-recover-setup";
    if (!alive) {
      return fail(Errc::vmm,
                  fmt::format("the destination QEMU cannot be attached to: its migration "
                              "is '{}', not postcopy-paused",
                              status));
    }
    if (deadline.passed()) {
      return fail(Errc::timeout, fmt::format("the destination QEMU's migration stays '{}': is "
                                             "another pager serving it?",
                                             status));
    }
    // The dead pager's socket may hang half closed; refused while QEMU is already on its way to
    // paused.
    const auto paused = qmp_->execute("migrate-pause", json::object(), deadline);
    if (!paused && paused.error().code != Errc::vmm) return tl::make_unexpected(paused.error());
    std::this_thread::sleep_for(kAskAgain);
  }
}

Result<void> RealQemuRestore::attach(const QemuState& state, PageSupply& supply,
                                     Deadline deadline) {
  PF_CHECK(!channels_ && !loop_);
  PF_TRY(state.layout.check_same_blocks(supply.layout()));
  PF_TRY(make_recoverable(deadline));
  PF_ASSIGN(const std::string status, migration_status(deadline));
  // Also of a completed one: its capabilities may still be on.
  PF_ASSIGN(const PagePlacement placement, placement_in_use(*qmp_, deadline));
  placement_ = placement;
  if (status == "completed") {
    already_completed_ = true;
    return {};
  }
  PF_TRY(look_at_memory(state.layout, placement, deadline));
  if (memory_) {
    // It has been open since the devices were loaded.
    auto userfault = memory_->userfault();
    if (!userfault) return tl::make_unexpected(std::move(userfault).error());
  }
  PF_TRY(qmp_->execute("migrate-recover", {{"uri", "unix:" + options_.channel_socket_path}},
                       deadline));
  PF_ASSIGN(channels_, QemuPageChannels::connect(options_.channel_socket_path, layout_));
  if (preempt() && qmp_->qemu_version() < kQemu80) PF_TRY(channels_->connect_urgent());
  return_path_.emplace(channels_->main_fd(), layout_);
  auto sent = ask_what_is_there(deadline);
  if (!sent) return explain(std::move(sent).error(), deadline);
  if (memory_) PF_TRY(memory_->mark_present(layout_, *sent));
  PF_TRY(resume(deadline));
  prefetch_begun_ = true;
  return start_loop(supply, std::move(*sent), FirstPace::full);
}

Result<SentMap> RealQemuRestore::ask_what_is_there(Deadline deadline) {
  SentMap sent(layout_.pages());
  for (std::size_t index = 0; index < layout_.blocks().size(); ++index) {
    const RamBlock& block = layout_.blocks()[index];
    ByteBuffer bytes;
    qemu_stream::append_recv_bitmap_request(bytes, block.name);
    PF_TRY(channels_->write(bytes, deadline));
    for (bool answered = false; !answered;) {
      PF_ASSIGN(const auto message, return_path_->next(deadline));
      const auto* bitmap = std::get_if<qemu_stream::ReceivedBitmap>(&message);
      if (bitmap != nullptr && bitmap->block == index) {
        mark_received(sent, block, *bitmap);
        answered = true;
      } else if (const auto* request = std::get_if<qemu_stream::PageRequest>(&message)) {
        early_requests_.push_back(request->run);
      }
    }
  }
  return sent;
}

Result<void> RealQemuRestore::resume(Deadline deadline) {
  if (preempt() && qmp_->qemu_version() >= kQemu80) PF_TRY(channels_->connect_urgent());
  ByteBuffer bytes;
  qemu_stream::append_postcopy_resume(bytes);
  PF_TRY(channels_->write(bytes, deadline));
  for (;;) {
    PF_ASSIGN(const auto message, return_path_->next(deadline));
    if (const auto* request = std::get_if<qemu_stream::PageRequest>(&message)) {
      early_requests_.push_back(request->run);
    }
    const auto* ack = std::get_if<qemu_stream::ResumeAck>(&message);
    if (ack == nullptr) continue;
    if (ack->value == 1) return {};
    return fail(Errc::vmm, fmt::format("the destination QEMU answered RESUME with {}", ack->value));
  }
}

Result<void> RealQemuRestore::finish() {
  if (already_completed_) return leave_nothing_behind();
  PF_CHECK(loop_ != nullptr);
  if (!prefetch_begun_) begin_prefetch(GuestIs::paused);
  const auto event = loop_->wait(QemuRestoreLoop::Event::all_received, Deadline::never());
  if (event != QemuRestoreLoop::Event::all_received) return loop_failure(*event);
  PF_TRY(wait_until_completed(Deadline::after(clock_, kCompleteBound)));
  return leave_nothing_behind();
}

// What we switched on would stand in the way of the guest's next move, and nobody needs to know any more where its memory is.
Result<void> RealQemuRestore::leave_nothing_behind() {
  if (!options_.run_directory.empty()) {
    PF_TRY(remove_run_file(options_.run_directory, kMemoryMapFileName));
  }
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

}  // namespace

Result<std::unique_ptr<QemuRestore>> QemuRestore::create(QmpClient& qmp, RestoreOptions options) {
  return std::make_unique<RealQemuRestore>(qmp, std::move(options));
}

}  // namespace pageferry
