// Two threads: the reader (stream -> parser -> sink) and the caller's (QMP events, steering). They
// share a few atomics and one milestone (QemuStreamReader); nothing else, so a store that hangs
// never keeps us from hearing QEMU, and a busy monitor never slows the pages down.
//
// Between STOP and the complete state nothing waits for us: the STOP event sends the reader to the
// tail, the pre-switchover event is answered by migrate-continue at once (by run_blackout), no
// query is made while the guest is stopped.
//
// Invariants:
//   I1  the guest can be left stopped by QEMU alone, and only after CaptureChannel::commit(). Every
//       other way out closes the channel, upon which QEMU resumes the guest, if it was running.
//   I2  capabilities and parameters are put back whenever the migration is over, however it ended.
//   I3  the events are drained before any decision: a `failed` or a guest's end is never overlooked
//       for a later success.
#include "vmstate/qemu_capture.h"

#include <fmt/core.h>

#include <random>
#include <utility>

#include "vmstate/qemu_capture_impl.h"
#include "vmstate/qemu_ram_blocks.h"
#include "vmstate/qmp_fields.h"

namespace pageferry {
namespace {

using nlohmann::json;
using Milestone = QemuStreamReader::Milestone;

constexpr Seconds kSetupBound{60};
constexpr Seconds kAbortBound{30};
constexpr Seconds kDescriptionBound{3};  // of silence after the last byte, the guest stopped

}  // namespace

QemuCaptureImpl::~QemuCaptureImpl() {
  try {
    if (phase_ == Phase::completed) {
      // I2. The source is ended or continued by others now; a failure here changes nothing for them.
      if (settings_) static_cast<void>(settings_->restore());
    } else if (phase_ != Phase::ended && phase_ != Phase::idle && phase_ != Phase::committing) {
      static_cast<void>(abort());
    }
  } catch (const std::exception&) {
    // Nobody is left to be told; the stream that closes with us ends the migration.
  }
  reader_for_stats_ = nullptr;
}

Result<json> QemuCaptureImpl::execute(const char* command, json arguments) {
  return qmp_->execute(command, std::move(arguments), Deadline::after(clock_, kQmpCommandBound));
}

bool QemuCaptureImpl::request_stop() {
  stop_requested_ = true;
  CaptureChannel* channel = channel_for_stop_;
  return channel == nullptr || channel->close();
}

CaptureStats QemuCaptureImpl::stats() const {
  CaptureStats stats;
  stats.passes = passes_;
  stats.stopped_at = Nanoseconds(stopped_ns_.load());
  stats.continued_at = Nanoseconds(continued_ns_.load());
  stats.guest_was_running = guest_was_running_;
  stats.guest_end = guest_end_;
  stats.guest_resets = resets_;
  if (const QemuStreamReader* reader = reader_for_stats_) {
    const QemuStreamReader::Counters counters = reader->counters();
    stats.pages_stored = counters.pages;
    stats.pages_zero = counters.zero_pages;
    stats.blackout_pages = counters.blackout_pages;
    stats.bytes_received = counters.bytes;
    stats.sink_time = counters.working;
    stats.ram_complete_at = reader->ram_complete_at();
    stats.state_complete_at = reader->state_complete_at();
  }
  return stats;
}

// --- start ---

Result<void> QemuCaptureImpl::start() {
  if (phase_ != Phase::idle) return fail(Errc::invalid, "capture: started twice");
  // Everything that may refuse comes before anything that changes something.
  PF_ASSIGN(QemuSourceSettings settings, QemuSourceSettings::read(*qmp_, clock_));
  guest_was_running_ = settings.guest_running();
  PF_ASSIGN(std::vector<QemuRamBlock> blocks,
            query_ram_blocks(*qmp_, Deadline::after(clock_, kQmpCommandBound)));
  PF_ASSIGN(channel_, CaptureChannel::create());
  channel_for_stop_ = channel_.get();
  if (stop_requested_) channel_->close();
  settings_.emplace(std::move(settings));
  reader_ = std::make_unique<QemuStreamReader>(*channel_, *sink_, clock_, std::move(blocks));
  reader_for_stats_ = reader_.get();
  control_.emplace(*settings_, *channel_,
                   SwitchoverSteering::Limits{.target_downtime = options_.target_downtime,
                                              .max_downtime = options_.max_downtime,
                                              .passes_max = options_.passes_max},
                   options_.bandwidth_limit_bytes_per_s);
  phase_ = Phase::started;
  PF_TRY(pump(Nanoseconds(0)));  // what happened before is not about this migration
  events_ = QemuSourceEvents();
  PF_TRY(settings_->apply());
  PF_TRY(control_->prepare());
  PF_TRY(give_channel());
  if (guest_was_running_) control_->arm_gate(*reader_);
  reader_->start();
  PF_TRY(execute("migrate", {{"uri", "fd:" + fd_name_}}));
  fd_name_held_ = false;

  const auto deadline = Deadline::after(clock_, kSetupBound);
  while (true) {
    PF_TRY(pump(Nanoseconds(0)));
    PF_TRY(check_alive());
    const auto reached =
        reader_->wait_for(Milestone::setup_complete, Deadline::after(clock_, kEventWait));
    if (reached && *reached) break;  // why it failed is check_alive()'s to say
    if (deadline.passed()) {
      return fail(Errc::timeout,
                  fmt::format("QEMU sent no memory within {} s of `migrate`", kSetupBound.count()));
    }
  }
  state_ = reader_->state_after_setup();
  progress_at_ = clock_.now();
  return {};
}

Result<void> QemuCaptureImpl::give_channel() {
  std::random_device random;
  fd_name_ = fmt::format("pageferry-{:08x}", random());
  PF_TRY(qmp_->execute_with_fd("getfd", {{"fdname", fd_name_}}, channel_->vmm_end(),
                               Deadline::after(clock_, kQmpCommandBound)));
  fd_name_held_ = true;
  channel_->close_vmm_end();
  return {};
}

// --- events ---

void QemuCaptureImpl::apply_event(const json& event) {
  events_.apply(event, clock_.now());
  const bool by_migration =
      guest_was_running_ ? events_.stopped() : events_.status() == "pre-switchover";
  if (by_migration && stopped_ns_ == 0) {
    stopped_ns_ = clock_.now().count();
    if (reader_) reader_->begin_blackout();
  }
  resets_ = events_.resets();
  if (events_.guest_end() != GuestEnd::none) guest_end_ = events_.guest_end();
  if (reader_ && events_.passes() != passes_) reader_->begin_pass();
  passes_ = events_.passes();
}

Result<void> QemuCaptureImpl::pump(Nanoseconds wait) {
  auto event = qmp_->wait_event(Deadline::after(clock_, wait));
  while (event && *event) {
    apply_event(**event);
    event = qmp_->wait_event(Deadline::after(clock_, Nanoseconds(0)));
  }
  if (event) return {};
  // A QEMU that ended with its guest said so before.
  if (const GuestEnd end = events_.guest_end(); end != GuestEnd::none) {
    return fail(Errc::vmm, guest_end_text(end));
  }
  return tl::make_unexpected(event.error());
}

Result<void> QemuCaptureImpl::check_alive() {
  if (stop_requested_) return fail(Errc::canceled, "the migration was canceled");
  if (const GuestEnd end = events_.guest_end(); end != GuestEnd::none) {
    return fail(Errc::vmm, guest_end_text(end));
  }
  const auto failure = reader_ ? reader_->failure() : std::nullopt;
  // QEMU's own reason is better than "the stream ended".
  if (failure && failure->code != Errc::gone) return tl::make_unexpected(*failure);
  if (failure || events_.migration_ended()) return migration_failed(failure ? &*failure : nullptr);
  return {};
}

Unexpected QemuCaptureImpl::migration_failed(const Error* reader_error) {
  // A guest's end and a broken stream may arrive in either order; one more look at the events.
  static_cast<void>(pump(kStopGrace));
  if (const GuestEnd end = events_.guest_end(); end != GuestEnd::none) {
    return fail(Errc::vmm, guest_end_text(end));
  }
  auto migration = execute("query-migrate");
  if (!migration)
    return with_context(migration.error(),
                        reader_error ? reader_error->message : "migration failed");
  const std::string reason = text_field(*migration, "error-desc");
  return fail(Errc::vmm,
              fmt::format("QEMU ended the migration with status \"{}\"{}{}",
                          text_field(*migration, "status"), reason.empty() ? "" : ": ", reason));
}

// STOP without pre-switchover: somebody else stopped the guest.
Result<void> QemuCaptureImpl::check_foreign_stop() {
  if (!events_.stopped() || events_.status() == "pre-switchover") return {};
  if (clock_.now() - events_.stopped_at() < kStopGrace) return {};
  PF_ASSIGN(const json status, execute("query-status"));
  if (text_field(status, "status") == "finish-migrate") return {};
  PF_TRY(pump(Nanoseconds(0)));
  PF_TRY(check_alive());
  if (!events_.stopped() || events_.status() == "pre-switchover") return {};
  guest_end_ = GuestEnd::other_pause;
  return fail(Errc::vmm, fmt::format("{} (run state \"{}\")", guest_end_text(GuestEnd::other_pause),
                                     text_field(status, "status")));
}

// --- blackout ---

Result<void> QemuCaptureImpl::run_blackout() {
  if (phase_ != Phase::stopped) return fail(Errc::invalid, "capture: run_blackout() out of order");
  reader_->open_gate();
  continued_ns_ = clock_.now().count();
  PF_TRY(execute("migrate-continue", {{"state", "pre-switchover"}}));
  std::uint64_t bytes_before = 0;
  Nanoseconds last_byte_at = clock_.now();
  while (true) {
    auto reached =
        reader_->wait_for(Milestone::state_complete, Deadline::after(clock_, kEventWait));
    if (reached && *reached) break;
    PF_TRY(pump(Nanoseconds(0)));
    PF_TRY(check_alive());
    const CaptureStats now = stats();
    if (now.bytes_received != bytes_before) {
      bytes_before = now.bytes_received;
      last_byte_at = clock_.now();
    }
    // QEMU waits for our word and has said everything, yet the device state has no description to check it by.
    if (now.ram_complete_at != Nanoseconds(0) && clock_.now() - last_byte_at > kDescriptionBound) {
      return fail(Errc::unsupported,
                  "the stream ends without a description of the device state (machine option "
                  "suppress-vmdesc=on)");
    }
  }
  reader_->join();
  state_ = reader_->take_state();
  const std::string stopped_as = qemu_stream::captured_run_state(state_.device_sections);
  if (guest_was_running_ && !stopped_as.empty() && stopped_as != "running") {
    guest_end_ = GuestEnd::other_pause;
    return fail(Errc::vmm, fmt::format("{} (it was stopped as \"{}\")",
                                       guest_end_text(GuestEnd::other_pause), stopped_as));
  }
  phase_ = Phase::complete;
  return {};
}

Result<void> QemuCaptureImpl::commit_source() {
  if (phase_ != Phase::complete)
    return fail(Errc::invalid, "capture: commit_source() out of order");
  PF_TRY(pump(Nanoseconds(0)));
  PF_TRY(check_alive());
  if (!qmp_->unbroken())
    return fail(Errc::gone, "QMP was lost: whether QEMU completes could not be seen");
  PF_TRY(channel_->commit());
  phase_ = Phase::committing;
  // No clock from here on: QEMU has our word, and only its own says what became of it.
  while (events_.status() != "completed") {
    if (events_.migration_ended()) {
      return migration_failed(nullptr);
    }
    PF_TRY(pump(Seconds(1)));
  }
  phase_ = Phase::completed;
  return {};
}

// --- abort ---

Result<void> QemuCaptureImpl::abort() {
  if (phase_ == Phase::idle || phase_ == Phase::ended) {
    phase_ = Phase::ended;
    return {};
  }
  if (!channel_->close()) {
    return fail(Errc::invalid, "SHUT(0) was sent: the migration can no longer be aborted");
  }
  phase_ = Phase::ended;
  auto restored = restore_guest();
  reader_->join();
  // A QEMU that ended with its guest has nothing to be put back.
  const bool ended = events_.guest_end() != GuestEnd::none && !qmp_->unbroken();
  return ended ? Result<void>() : restored;
}

Result<void> QemuCaptureImpl::restore_guest() {
  // A QEMU that refused `migrate` may have closed it already.
  if (fd_name_held_) static_cast<void>(execute("closefd", {{"fdname", fd_name_}}));
  fd_name_held_ = false;
  const auto deadline = Deadline::after(clock_, kAbortBound);
  bool over = false;
  bool canceled = false;
  while (!over) {
    PF_ASSIGN(over, migration_is_over());
    if (over) break;
    // The closed stream alone ends it, except while QEMU waits in pre-switchover or has not looked
    // at the stream yet.
    if (!canceled) PF_TRY(execute("migrate_cancel"));
    canceled = true;
    if (deadline.passed()) {
      return fail(Errc::timeout,
                  fmt::format("QEMU did not end the migration within {} s", kAbortBound.count()));
    }
    PF_TRY(pump(kEventWait));
  }
  return settings_->restore();
}

// The migration has ended, and the guest runs again if it ran before and can.
Result<bool> QemuCaptureImpl::migration_is_over() {
  PF_ASSIGN(const json migration, execute("query-migrate"));
  const std::string status = text_field(migration, "status");
  if (!status.empty() && status != "none" && status != "failed" && status != "cancelled" &&
      status != "completed") {
    return false;
  }
  PF_ASSIGN(const json run, execute("query-status"));
  const std::string state = text_field(run, "status");
  return state != "finish-migrate";
}

Result<std::unique_ptr<QemuCapture>> QemuCapture::create(QmpClient& qmp, PageSink& sink,
                                                         CaptureObserver& observer,
                                                         CaptureOptions options) {
  if (options.max_downtime < Milliseconds(1) || options.target_downtime < Milliseconds(1)) {
    return fail(Errc::invalid,
                fmt::format("capture: max downtime {} ms and target {} ms, must be at least 1",
                            options.max_downtime.count(), options.target_downtime.count()));
  }
  if (options.passes_max == 0)
    return fail(Errc::invalid, "capture: the pass limit is 0, must be at least 1");
  return std::make_unique<QemuCaptureImpl>(qmp, sink, observer, options);
}

}  // namespace pageferry
