// The sequence up to the point of no return. While it is in the brownout, source_brownout.cc answers;
// what comes after that point is in source_hand_over.cc.
#include "tools/pageferry/source_migration.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "tools/pageferry/attempt_files.h"
#include "tools/pageferry/blackout_guard.h"
#include "tools/pageferry/store_step.h"
#include "transport/os/thread_priority.h"
#include "transport/store_check.h"

namespace pageferry {
namespace {

constexpr std::uint64_t kTailBandwidthGuessBytesPerS = std::uint64_t{1} << 30;
constexpr std::uint64_t kTailBytesMin = std::uint64_t{16} << 20;
constexpr std::uint64_t kTailBytesMax = std::uint64_t{1} << 30;

// What two times the allowed downtime can write at a fast store's speed, at most an eighth of the guest.
std::uint64_t tail_bytes_for(Milliseconds max_downtime, std::uint64_t guest_bytes) {
  constexpr std::uint64_t kMsPerSecond = 1000;
  const auto ms = static_cast<std::uint64_t>(max_downtime.count());
  const std::uint64_t wanted = 2 * ms * kTailBandwidthGuessBytesPerS / kMsPerSecond;
  const std::uint64_t bound = std::min(kTailBytesMax, std::max(kTailBytesMin, guest_bytes / 8));
  return bytes_of_pages(pages_of_bytes(std::clamp(wanted, kTailBytesMin, bound)));
}

}  // namespace

SourceMigration::SourceMigration(SourceOptions options, CommonOptions common,
                                 const DestinationOptions* destination, Reporter& reporter,
                                 const Clock& clock)
    : options_(std::move(options)),
      common_(std::move(common)),
      destination_options_(destination),
      reporter_(reporter),
      clock_(clock),
      started_(clock.now()) {}

SourceMigration::~SourceMigration() = default;

ExitCode SourceMigration::run() {
  prefer_quick_wakeup();  // the switch waits for this thread
  reporter_.phase("open");
  if (auto opened = open(); !opened) {
    reporter_.error(opened.error());
    return finish(ExitCode::refused);
  }
  if (auto made = setup(); !made) return fail_before_shut(made.error());
  reporter_.phase("brownout");
  if (auto done = capture_->run_brownout(); !done) return fail_before_shut(done.error());
  reporter_.phase("blackout");
  if (auto done = blackout(); !done) return fail_before_shut(done.error());
  reporter_.phase("switchover");
  if (auto done = switchover(); !done) {
    // An abort, or QEMU's end, came first.
    if (!capture_->shut_was_sent()) return fail_before_shut(done.error());
    reporter_.error(done.error());
    // Without a release nothing may name the image: with its VMM the guest's state is gone.
    const auto vmm_lives = is_alive(vmm());
    const bool lost = released_at_ == Nanoseconds(0) && vmm_lives && !*vmm_lives;
    return finish(lost ? ExitCode::state_lost : ExitCode::recoverable);
  }
  return after_release();
}

Result<void> SourceMigration::open() {
  PF_ASSIGN(vm_, connect_source_vmm(options_.vm, options_.name, VmmUse::move, clock_));
  PF_ASSIGN(lock_, VmLock::acquire(common_.run_dir, name() + ".source"));
  PF_ASSIGN(const auto findings, vm_->preflight(DestinationHost::same));
  for (const Finding& finding : findings) {
    if (finding.severity == Severity::warning) reporter_.warning(finding.text);
  }
  if (has_refusal(findings)) return fail(Errc::unsupported, refusal_text(findings));
  PF_TRY(check_the_store());
  PF_ASSIGN(control_, ControlServer::start(common_.run_dir + "/" + name() + ".source.sock",
                                           [this] { return request_abort(); }));
  PF_ASSIGN(hand_off_,
            HandOff::open(options_.store, name(), VmDirectory::IfMissing::create, stop_));
  return open_epoch();
}

Result<void> SourceMigration::check_the_store() {
  const StoreReport store = check_store(options_.store);
  if (!store.usable()) return fail(Errc::unsupported, store.refusal());
  for (const StoreFinding& finding : store.findings) {
    if (finding.severity == StoreSeverity::warning) reporter_.warning(finding.message);
  }
  return {};
}

// Rule 1: a running VM that has no epoch opens the next one under rule 2.
Result<void> SourceMigration::open_epoch() {
  PF_ASSIGN(const OwnershipSnapshot snapshot, hand_off_->read());
  const Standing standing = standing_of(vmm(), snapshot, hand_off_->host());
  if (standing.kind == Standing::Kind::refused) return fail(Errc::not_owner, standing.reason);
  epoch_ = standing.epoch;
  if (standing.kind == Standing::Kind::owner) return {};
  PF_ASSIGN(const Claim claim, hand_off_->claim(epoch_, vmm()));
  if (claim == Claim::lost) {
    return fail(Errc::not_owner, fmt::format("epoch {} of {} was claimed by another host just now",
                                             raw(epoch_), name()));
  }
  return hand_off_->run(epoch_, vmm());
}

Result<void> SourceMigration::make_page_file() {
  PF_ASSIGN(Attempt attempt, hand_off_->directory().create_attempt(epoch_));
  attempt_ = std::make_shared<Attempt>(std::move(attempt));
  PF_ASSIGN(const PageFileIds ids, PageFileIds::random());
  std::memcpy(commit_id_.bytes.data(), ids.commit_id.data(), commit_id_.bytes.size());
  PF_ASSIGN(std::unique_ptr<StorageFile> file,
            create_attempt_pages(*attempt_, common_.store_faults, clock_));
  PageFileWriterOptions options;
  PF_ASSIGN(const std::uint64_t guest_bytes, vm_->memory_bytes());
  options.tail_bytes_max = tail_bytes_for(options_.max_downtime, guest_bytes);
  options.bandwidth_limit_bytes_per_s = options_.bandwidth_bytes_per_s;
  PF_ASSIGN(std::unique_ptr<PageFileWriter> writer,
            PageFileWriter::make(std::move(file), ids, options, clock_));
  const std::lock_guard lock(stop_mutex_);
  writer_ = std::move(writer);
  return {};
}

Result<void> SourceMigration::setup() {
  PF_TRY(make_page_file());
  PF_TRY(find_base());
  CaptureOptions capture;
  if (base_) {
    capture.base_attempt = base_->id;
    capture.base_layout = base_->image.layout;
  }
  capture.bandwidth_limit_bytes_per_s = options_.bandwidth_bytes_per_s;
  capture.max_downtime = options_.max_downtime;
  capture.target_downtime = std::min(capture.target_downtime, options_.max_downtime);
  capture.epoch = raw(epoch_);
  capture.blackout_limit = options_.blackout_limit;
  capture.sink_bytes_per_s = [this] { return writer_->stats().write_bytes_per_s; };
  PF_ASSIGN(std::unique_ptr<Capture> made, vm_->make_capture(*writer_, *this, capture));
  {
    const std::lock_guard lock(stop_mutex_);
    capture_ = std::move(made);
  }
  PF_TRY(capture_->start());
  PF_TRY(settle_base());
  PF_TRY(common_.fail_points.hit("source.setup"));
  PF_TRY(write_manifest());
  return start_destination();
}

Result<void> SourceMigration::write_manifest() {
  VmManifest manifest;
  PF_TRY(vm_->describe(manifest));
  capture_->describe(manifest);
  manifest.vm_name = name();
  manifest.vm_uuid = vm_->facts().uuid;
  manifest.attempt_id = attempt_->name.substr(attempt_->name.rfind('.') + 1);
  manifest.epoch = raw(epoch_);
  manifest.source_host = hand_off_->host().name;
  manifest.source_boot_id = hand_off_->host().boot_id;
  manifest.source = vm_->facts().process;
  manifest.run_state = vm_->facts().running ? GuestRunState::running : GuestRunState::paused;
  manifest.page_bytes = kPageSizeBytes;
  if (base_) manifest.bases = manifest_bases(base_->plan);
  PF_ASSIGN(const std::string text, encode_manifest(manifest));
  const auto bytes = std::as_bytes(std::span(text));
  PF_TRY(write_file(std::string(kManifestFileName), {bytes.begin(), bytes.end()}));
  std::vector<std::byte> prepare = capture_->encode_state();
  if (prepare.empty()) return {};
  return write_file(kPrepareFileName, std::move(prepare));
}

// Never in a call of this thread: it must hear that the migration is given up.
Result<void> SourceMigration::write_file(const std::string& name, std::vector<std::byte> bytes) {
  return run_store_step<void>(name, store_bounds(),
                              [attempt = attempt_, name, bytes = std::move(bytes)] {
                                return write_attempt_file(*attempt, name, bytes);
                              });
}

Result<void> SourceMigration::blackout() {
  BlackoutGuard guard(options_.blackout_limit, [this] { return stop_before_shut(); });
  auto done = freeze_and_commit();
  // Whatever step noticed it: the reason is the limit. And a guard that fires later than this would
  // close the stream under commit_source().
  if (!guard.disarm()) return done;
  timed_out_ = true;
  return fail(Errc::timeout,
              fmt::format("the blackout lasted longer than {} s (--blackout-limit) before SHUT(0)",
                          options_.blackout_limit.count()));
}

Result<void> SourceMigration::freeze_and_commit() {
  PF_TRY(common_.fail_points.hit("source.blackout"));
  PF_TRY(capture_->run_blackout());
  const auto state_complete = clock_.now();
  PF_TRY(note_disks());
  PF_TRY(commit_image());
  committed_at_ = clock_.now();
  split_["commit"] = to_ms(committed_at_ - state_complete);
  PF_TRY(read_back_if_asked());
  // A hint: loading the image can go on beside SHUT(0) and the release.
  if (link_) {
    [[maybe_unused]] const auto told = link_->send({{"type", "committed"}});
  }
  return common_.fail_points.hit("source.before-shut");
}

// QEMU has inactivated the images by now: nothing changes them until somebody runs the guest again.
Result<void> SourceMigration::note_disks() {
  PF_ASSIGN(const auto paths, vm_->disk_files());
  PF_ASSIGN(disks_,
            run_store_step<std::vector<DiskFile>>("sizes of the disk images", store_bounds(),
                                                  [paths = paths] { return stat_disks(paths); }));
  return {};
}

// Everything durable, the commit last.
Result<void> SourceMigration::commit_image() {
  PF_TRY(write_file(kStateFileName, capture_->encode_state()));
  PF_TRY(common_.fail_points.hit("source.before-commit"));
  PF_ASSIGN([[maybe_unused]] const CommitInfo commit, writer_->finish_and_commit());
  return {};
}

Result<void> SourceMigration::read_back_if_asked() {
  if (options_.read_back == ReadBack::no) return {};
  reporter_.phase("verify");
  const auto started = clock_.now();
  PF_TRY(run_store_step<void>(
      "reading the page file back", store_bounds(),
      [attempt = attempt_, faults = common_.store_faults, stop = store_stop_] {
        const MonotonicClock clock;
        return verify_attempt_pages(*attempt, faults, clock, {stop.get(), Deadline::never()});
      }));
  split_["verify"] = to_ms(clock_.now() - started);
  return {};
}

bool SourceMigration::stop_before_shut() {
  const std::lock_guard lock(stop_mutex_);
  if (past_shut_ || (capture_ && !capture_->request_stop())) return false;
  store_stop_->cancel();
  if (writer_) writer_->cancel();
  return true;
}

Result<std::string> SourceMigration::request_abort() {
  abort_asked_ = true;
  if (stop_before_shut()) return std::string("aborting; the guest runs on at the source");
  return fail(Errc::invalid, "past the point of no return: the hand-off is being finished");
}

ExitCode SourceMigration::fail_before_shut(const Error& error) {
  const Error& cause = destination_error_ ? *destination_error_ : error;
  reporter_.error(timed_out_ ? Error{Errc::timeout, 0, timeout_text(cause)} : cause);
  bool undone = true;
  // The capture's thread may wait for a store that does not answer.
  stop_before_shut();
  if (capture_) {
    if (auto aborted = capture_->abort(); !aborted) {
      reporter_.error(aborted.error());
      undone = false;
    }
  }
  {
    const std::lock_guard lock(stop_mutex_);
    writer_.reset();
  }
  if (link_) {
    // The agent ends its QEMU when told, or when its channel closes.
    [[maybe_unused]] const auto told = link_->send({{"type", "cancel"}});
    constexpr Seconds kAgentEndBound{20};
    link_->wait_for_exit(Deadline::after(clock_, kAgentEndBound));
  }
  remove_the_attempt();
  result_.erase("destination");
  // What it ran in is dead, and nothing was released: nobody may continue it.
  const auto vmm_lives = is_alive(vmm());
  if (vmm_lives && !*vmm_lives) return finish(ExitCode::state_lost);
  if (!undone) return finish(ExitCode::recoverable);
  if (timed_out_) return finish(ExitCode::timed_out);
  return finish(abort_asked_ ? ExitCode::aborted : ExitCode::failed);
}

void SourceMigration::remove_the_attempt() {
  if (!attempt_) return;
  constexpr Seconds kRemoveBound{5};
  const std::string name = attempt_->name;
  attempt_.reset();
  auto removed = run_store_step<void>(
      "removing " + name, {nullptr, Deadline::after(clock_, kRemoveBound)},
      [store = options_.store, vm = this->name(), name]() -> Result<void> {
        PF_ASSIGN(const VmDirectory directory,
                  VmDirectory::open(store, vm, VmDirectory::IfMissing::refuse));
        return directory.remove_attempt(name);
      });
  if (!removed) reporter_.warning(removed.error().message);
}

std::string SourceMigration::timeout_text(const Error& cause) const {
  if (cause.code == Errc::timeout) return cause.message;
  return fmt::format("no switch within {} s (--timeout)",
                     options_.timeout ? options_.timeout->count() : 0);
}

}  // namespace pageferry
