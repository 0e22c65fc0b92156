// From SHUT(0) on: nothing here has a clock that decides who runs the guest. The release is
// repeated until the store takes it; the destination's word is checked against the records; a
// destination that failed is answered by competing for the next epoch.
#include <fmt/format.h>

#include "tools/pageferry/host_forward_message.h"
#include "tools/pageferry/recovery.h"
#include "tools/pageferry/serving_lock.h"
#include "tools/pageferry/source_migration.h"
#include "vmstate/run_directory.h"

namespace pageferry {

namespace {

constexpr Milliseconds kStorePollInterval{250};

}  // namespace

Result<void> SourceMigration::switchover() {
  const auto started = clock_.now();
  PF_TRY(capture_->commit_source());
  GuestState state;
  state.disks = disks_;
  state.memory = StoppedVmm{hand_off_->host(), vmm()};
  if (vm_->image_is_certain()) state.image = ImageRef{attempt_->name, commit_id_};
  split_["shut"] = to_ms(clock_.now() - started);
  PF_TRY(common_.fail_points.hit("source.after-shut"));
  const auto before = clock_.now();
  PF_TRY(hand_off_->release(epoch_, state));
  released_at_ = clock_.now();
  released_state_ = state;
  split_["release"] = to_ms(released_at_ - before);
  result_["eviction-time"] = to_ms(released_at_ - started_);
  return common_.fail_points.hit("source.after-release");
}

ExitCode SourceMigration::after_release() {
  add_source_figures();
  if (!link_) {
    if (options_.source_end == SourceEnd::quit) end_source();
    return finish(ExitCode::done);
  }
  if (!released_state_.image) {
    reporter_.error(
        Error{Errc::vmm, 0, "the monitor connection broke: the image cannot be trusted"});
    return take_back();
  }
  // A hint; the agent also looks by itself.
  [[maybe_unused]] const auto told = link_->send({{"type", "released"}});
  return wait_for_running();
}

ExitCode SourceMigration::wait_for_running() {
  reporter_.phase("switchover-wait");
  while (true) {
    auto message = link_->receive(Deadline::after(clock_, kStorePollInterval));
    if (!message) return destination_failed(message.error());
    if (!*message) continue;
    const std::string type = (**message)["type"];
    if (type == "failed") return destination_failed(error_of_message(**message));
    if (type != "running") continue;
    auto snapshot = hand_off_->read();
    if (!snapshot) return destination_failed(snapshot.error());
    if (snapshot->highest() != next(epoch_) || !snapshot->top().ran()) continue;
    add_destination_figures(**message);
    close_page_file();
    return wait_for_resident();
  }
}

void SourceMigration::add_destination_figures(const nlohmann::json& running) {
  result_["destination"] = running.value("destination", nlohmann::json::object());
  const CaptureStats stats = capture_->stats();
  const Nanoseconds resumed(running.value("resumed-at-ns", std::int64_t{0}));
  const nlohmann::json theirs = running.value("downtime-split", nlohmann::json::object());
  for (const auto& [name, value] : theirs.items()) split_[name] = value;
  // Both clocks are this host's (--to local): STOP event to the answer of `cont`.
  if (stats.guest_was_running && resumed > stats.stopped_at) {
    result_["downtime"] = to_ms(resumed - stats.stopped_at);
    result_["time-to-run"] = to_ms(resumed - started_);
    result_["commit-to-run-us"] =
        std::chrono::duration_cast<std::chrono::microseconds>(resumed - committed_at_).count();
  }
  result_["claim"] = {{"epoch", raw(next(epoch_))}, {"owner", hand_off_->host().name}};
}

// The destination will remove it, and an NFS client keeps what a process of this host has open. Not before the guest runs: closing
// takes CPU time.
void SourceMigration::close_page_file() {
  const std::lock_guard lock(stop_mutex_);
  writer_->close();
}

// The destination's running record is durable: the VMM here is only memory now.
void SourceMigration::end_source() {
  if (options_.source_end == SourceEnd::keep) return;
  const int pid = vmm().pid;
  auto ended = vm_->end();
  if (!ended) {
    reporter_.warning(
        fmt::format("the source VMM (pid {}) did not end: {}", pid, ended.error().message));
    return;
  }
  // If this program started it, its run directory goes too; others clean up after themselves.
  const std::string& socket = options_.vm.socket;
  const std::string directory = socket.substr(0, socket.rfind('/'));
  [[maybe_unused]] const auto removed = remove_run_directory(common_.run_dir, directory);
}

// The VMM here is ended and the guest runs: this tool only waits for the agent, which serves. Its place, and the name of its control
// socket, are for whoever moves the guest on.
void SourceMigration::let_others_move_on() {
  if (options_.vm.kind != VmmKind::hook) return;
  control_.reset();
  lock_.reset();
  auto control = ControlServer::start(serving_socket_path(common_.run_dir, name(), next(epoch_)),
                                      [this] { return request_abort(); });
  if (control) {
    control_ = std::move(*control);
  } else {
    reporter_.warning(control.error().message);
  }
}

ExitCode SourceMigration::wait_for_resident() {
  auto forwards = vm_->host_forwards();
  end_source();
  let_others_move_on();
  nlohmann::json ended = {{"type", "source-ended"}, {"host-forwards", nlohmann::json::array()}};
  if (forwards) ended["host-forwards"] = host_forwards_to_json(*forwards);
  [[maybe_unused]] const auto told = link_->send(ended);
  reporter_.phase("restore");
  while (true) {
    auto message = link_->receive(Deadline::never());
    if (!message) return destination_failed(message.error());
    if (!*message) continue;
    const std::string type = (**message)["type"];
    if (type == "failed") return destination_failed(error_of_message(**message));
    if (type == "warning") reporter_.warning((**message).value("text", ""));
    if (type == "progress") {
      if (control_) control_->set_status(**message);
      reporter_.progress("page-in", **message);
    }
    if (type != "resident") continue;
    for (const char* key : {"faults", "prefetch", "placement", "time-to-resident", "destination"}) {
      if ((**message).contains(key)) result_[key] = (**message)[key];
    }
    result_["ram"]["resident"] = (**message)["ram"]["transferred"];
    constexpr Seconds kAgentEndBound{10};
    link_->wait_for_exit(Deadline::after(clock_, kAgentEndBound));
    return finish(ExitCode::done);
  }
}

// The agent failed or died after the release. What is true stands in the records.
ExitCode SourceMigration::destination_failed(const Error& error) {
  reporter_.error(error);
  close_page_file();
  constexpr Seconds kAgentEndBound{20};
  link_->wait_for_exit(Deadline::after(clock_, kAgentEndBound));
  if (!lock_ && error.code != Errc::corrupt) return bring_the_rest();
  auto snapshot = hand_off_->read();
  if (!snapshot) {
    reporter_.error(snapshot.error());
    return finish(ExitCode::recoverable);
  }
  const bool claimed = snapshot->highest() != epoch_;
  if (!claimed || (snapshot->top().is_closed() && !snapshot->top().ran())) return take_back();
  // It runs, or would, from an image that was proved bad: nobody can bring that to an end.
  if (error.code == Errc::corrupt) return finish(ExitCode::state_lost);
  // The destination claimed. Its VMM is on this host: bring it to its end as `pageferry recover`
  // would.
  reporter_.note("the destination's tool ended: recovering");
  // Its monitor connections are its own; ours would stand in the way.
  {
    const std::lock_guard lock(stop_mutex_);
    past_shut_ = true;
    capture_.reset();
  }
  vm_->disconnect();
  Recovery recovery(recover_command(), reporter_, clock_);
  const ExitCode code = recovery.run_to_the_end();
  for (const auto& [key, value] : recovery.result().items()) result_[key] = value;
  const bool runs_at_source =
      recovery.result().value(nlohmann::json::json_pointer("/destination/pid"), 0) == vmm().pid;
  if (code == ExitCode::done && runs_at_source) return finish(ExitCode::failed);
  if (code == ExitCode::done) end_source();
  return finish(code);
}

RecoverCommand SourceMigration::recover_command() const {
  RecoverCommand command;
  command.common = common_;
  command.common.fail_points = FailPoints();
  command.destination = *destination_options_;
  command.destination.name = name();
  return command;
}

// The guest ran there, and others may be moving it on by now. Who gets the VM's locks recovers; else pages are brought and nothing more.
ExitCode SourceMigration::bring_the_rest() {
  const std::string& run_dir = common_.run_dir;
  auto source = VmLock::acquire(run_dir, name() + ".source");
  auto destination = VmLock::acquire(run_dir, name() + ".destination");
  const bool alone = source && destination;
  std::optional<ServingLock> serving;
  const auto serve = [&](Epoch epoch) {
    auto taken = ServingLock::acquire(run_dir, name(), epoch);
    if (!taken) return reporter_.warning(taken.error().message);
    serving.emplace(std::move(*taken));
    source = fail(Errc::not_found, "let go of");
    destination = fail(Errc::not_found, "let go of");
  };
  if (!alone) {
    serve(next(epoch_));
    if (!serving) return finish(ExitCode::recoverable);
  }
  reporter_.note(alone ? "the destination's tool ended: recovering"
                       : "the destination's tool ended: bringing the rest, others move it on");
  Recovery recovery(recover_command(), reporter_, clock_);
  if (alone) recovery.when_serving(serve);
  const ExitCode code = alone ? recovery.run_to_the_end() : recovery.serve_only();
  for (const auto& [key, value] : recovery.result().items()) result_[key] = value;
  return finish(code);
}

// Rule 5: the source continues only as the winner of the next epoch, from the memory it still
// holds.
ExitCode SourceMigration::take_back() {
  reporter_.phase("take-back");
  close_page_file();
  auto taken = claim_for_source();
  if (!taken) {
    reporter_.error(taken.error());
    return finish(ExitCode::recoverable);
  }
  if (*taken == Claim::lost) return finish(ExitCode::lost_claim);
  reporter_.note("the guest was taken back: it runs on the source");
  result_.erase("destination");
  result_["claim"] = {{"epoch", raw(epoch_)}, {"owner", hand_off_->host().name}};
  if (auto removed = drop_image(); !removed) reporter_.warning(removed.error().message);
  return finish(ExitCode::failed);
}

// The guest runs from the memory it always had: no image is needed by anybody.
Result<void> SourceMigration::drop_image() {
  PF_TRY(hand_off_->resident(epoch_));
  if (destination_options_->keep == KeepImage::yes) return {};
  return hand_off_->remove_older_attempts(epoch_);
}

Result<Claim> SourceMigration::claim_for_source() {
  PF_ASSIGN(const OwnershipSnapshot snapshot, hand_off_->read());
  const auto epoch = claimable_epoch(snapshot);
  if (!epoch) return Claim::lost;
  const GuestState state = image_for(snapshot, *epoch);
  const StoppedVmm mine{hand_off_->host(), vmm()};
  if (!state.memory || *state.memory != mine) return Claim::lost;
  PF_TRY(check_disks_unchanged(state.disks));
  // The destination has given up, the guest is stopped: a store that is full is waited for.
  PF_ASSIGN(const Claim claim, hand_off_->claim(*epoch, vmm(), WhenRefused::repeat));
  if (claim == Claim::lost) return claim;
  epoch_ = *epoch;
  PF_TRY(hand_off_->run(epoch_, vmm()));
  if (vm_->facts().running) PF_TRY(vm_->resume(raw(epoch_)));
  return claim;
}

void SourceMigration::add_source_figures() {
  const CaptureStats capture = capture_->stats();
  const PageFileWriterStats file = writer_->stats();
  result_["status"] = "completed";
  result_["ram"] = {{"total", capture_->layout().bytes()},
                    {"transferred", capture.bytes_received},
                    {"duplicate", file.zero_pages},
                    {"dirty-sync-count", capture.passes},
                    {"page-size", kPageSizeBytes}};
  result_["page-file"] = {{"bytes", file.file_bytes},
                          {"written", file.bytes_written},
                          {"rewritten-pages", file.rewritten_pages},
                          {"tail-bytes", bytes_of_pages(file.tail_pages)},
                          {"base-pages", file.base_pages},
                          {"write-bytes-per-s", file.write_bytes_per_s}};
  if (base_) result_["base"] = {{"attempt", base_->attempt}, {"files", base_->plan.bases.size()}};
  split_["ram"] = to_ms(capture.ram_complete_at - capture.stopped_at);
  split_["device-state"] = to_ms(capture.state_complete_at - capture.ram_complete_at);
}

ExitCode SourceMigration::finish(ExitCode code) {
  result_["total-time"] = to_ms(clock_.now() - started_);
  if (!split_.empty()) result_["downtime-split"] = split_;
  reporter_.finish(result_, code);
  return code;
}

}  // namespace pageferry
