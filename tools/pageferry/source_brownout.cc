// The brownout: the guest runs, its pages go out, and a destination is prepared beside it. What the
// capture asks on the way is answered here: go on, switch, or give up.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tools/pageferry/map_block_message.h"
#include "tools/pageferry/option_names.h"
#include "tools/pageferry/source_migration.h"

namespace pageferry {
Result<void> SourceMigration::start_destination() {
  if (destination_options_ == nullptr) return {};
  std::vector<std::string> argv = {own_executable(), "agent", "--run-dir", common_.run_dir};
  for (const std::string& spec : common_.fail_points.specs_for("destination.")) {
    argv.insert(argv.end(), {"--fail-at", spec});
  }
  if (!common_.store_fault_spec.empty()) {
    argv.insert(argv.end(), {"--inject-store", common_.store_fault_spec});
  }
  PF_ASSIGN(link_, DestinationLink::start(argv));
  const DestinationOptions& wanted = *destination_options_;
  return link_->send({{"type", "prepare"},
                      {"store", options_.store},
                      {"name", name()},
                      {"attempt", attempt_->name},
                      {"epoch", raw(epoch_)},
                      {"prefetch", name_of(kPrefetchOrderNames, wanted.order)},
                      {"placement", name_of(kPlacementNames, wanted.placement)},
                      {"keep", wanted.keep == KeepImage::yes},
                      {"incoming-command", wanted.incoming_command}});
}

// Takes what the agent has said; an agent that failed or died before the release is an error of the
// whole migration.
Result<void> SourceMigration::poll_destination() {
  if (!link_ || destination_error_) return {};
  while (true) {
    auto message = link_->receive(Deadline::after(clock_, Nanoseconds(0)));
    if (!message) {
      destination_error_ = message.error();
    } else if (!*message) {
      return {};
    } else if ((**message)["type"] == "prepared") {
      destination_prepared_ = true;
      destination_machine_ = (**message).value("machine", nlohmann::json::object());
      result_["destination"] = (**message).value("destination", nlohmann::json::object());
      hint_preload();
    } else if ((**message)["type"] == "failed") {
      destination_error_ = error_of_message(**message);
    }
    if (destination_error_) return tl::make_unexpected(*destination_error_);
  }
}

// Images, memory devices and the device list as they are now, not as they were when the attempt
// began.
Result<void> SourceMigration::check_machines() {
  if (machines_compared_ || !link_) return {};
  PF_ASSIGN(const auto differences, vm_->differences(destination_machine_));
  if (!differences.empty()) {
    return fail(Errc::invalid,
                fmt::format("the destination's machine differs: {}", fmt::join(differences, "; ")));
  }
  machines_compared_ = true;
  return {};
}

bool SourceMigration::may_switch() {
  if (!link_) return true;
  auto polled = poll_destination();
  if (polled && destination_prepared_) polled = check_machines();
  if (!polled) {
    destination_error_ = polled.error();
    return false;
  }
  return destination_prepared_;
}

CaptureObserver::Verdict SourceMigration::on_progress(const Progress& progress) {
  nlohmann::json fields = {{"status", progress.status},
                           {"speed", progress.bandwidth_bytes_per_s},
                           {"total-time", to_ms(clock_.now() - started_)}};
  fields["ram"] = {{"total", progress.ram_total_bytes},
                   {"transferred", progress.ram_transferred_bytes},
                   {"remaining", progress.ram_remaining_bytes},
                   {"duplicate", progress.duplicate_pages},
                   {"dirty-pages-rate", progress.dirty_pages_per_s},
                   {"page-size", kPageSizeBytes},
                   {"dirty-sync-count", progress.dirty_sync_count}};
  fields["claim"] = {{"epoch", raw(epoch_)}, {"owner", hand_off_->host().name}};
  control_->set_status(fields);
  reporter_.progress("page-out", std::move(fields));
  const char* point = progress.dirty_sync_count <= 1 ? "source.pass1" : "source.later-pass";
  auto hit = common_.fail_points.hit(point);
  if (hit) hit = poll_destination();
  if (!hit && !destination_error_) destination_error_ = hit.error();
  if (destination_error_ || abort_asked_) return Verdict::abort;
  hint_preload();
  if (options_.timeout && clock_.now() - started_ > *options_.timeout) {
    timed_out_ = true;
    if (options_.timeout_action == TimeoutAction::abort) return Verdict::abort;
    return may_switch() ? Verdict::switch_now : Verdict::go_on;
  }
  return Verdict::go_on;
}

void SourceMigration::on_pass(std::uint64_t) {
  hint_preload();
}

// The first pass leaves the map behind it on the store, bit by bit; each later one what it changed.
void SourceMigration::hint_preload() {
  if (!destination_prepared_) return;
  nlohmann::json hint = {{"type", "preload"}};
  if (const auto rewritten = writer_->take_rewritten_map_blocks(); !rewritten.empty()) {
    hint["rewritten"] = map_block_runs_to_json(rewritten);
  }
  [[maybe_unused]] const auto told = link_->send(hint);
}

CaptureObserver::Verdict SourceMigration::on_not_converging(const Progress& progress) {
  if (!told_not_converging_) {
    told_not_converging_ = true;
    reporter_.warning(fmt::format(
        "the guest dirties {} MiB/s and {} MiB remain after {} passes: no switch within {} ms{}",
        bytes_of_pages(progress.dirty_pages_per_s) >> 20, progress.ram_remaining_bytes >> 20,
        progress.dirty_sync_count, options_.max_downtime.count(),
        options_.timeout ? "; --timeout-action decides"
                         : "; raise --max-downtime or set --timeout"));
  }
  return Verdict::go_on;
}

}  // namespace pageferry
