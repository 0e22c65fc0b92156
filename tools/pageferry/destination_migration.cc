// The order inside take_over() is the point of this file: what can fail is done before the claim,
// except that QEMU up to 7.2 takes the disk locks when it loads the package, so that there the
// claim comes first (docs/ownership-protocol.md, rule 7).
#include "tools/pageferry/destination_migration.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/pageferry/attempt_files.h"
#include "tools/pageferry/option_names.h"
#include "tools/pageferry/ticker.h"
#include "vmstate/qemu_machine.h"
#include "vmstate/run_directory.h"

namespace pageferry {
namespace {

constexpr std::size_t kLogLines = 4;
constexpr Seconds kStartBound{60};
constexpr Seconds kQueryBound{30};
constexpr Seconds kLoadBound{60};
constexpr Milliseconds kProgressInterval{250};
// From here on QEMU takes the disk locks at `cont`, not when it loads its devices.
constexpr int kQemuLocksDisksAtContinue = 100000;

bool is_directory(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

}  // namespace

std::string image_stays_text(const Error& error) {
  return fmt::format("every page is here, but the image stays on the store: {}", error.message);
}

DestinationMigration::~DestinationMigration() {
  if (!ran_) discard();
}

Result<void> DestinationMigration::read_manifest_and_state() {
  PF_ASSIGN(const std::string manifest,
            read_attempt_text(*attempt_, std::string(kManifestFileName)));
  PF_ASSIGN(manifest_, decode_manifest(manifest));
  PF_ASSIGN(state_, read_attempt_state(*attempt_, kPrepareFileName));
  return {};
}

Result<DestinationCommand> DestinationMigration::make_command() {
  if (!options_.incoming_command.empty()) {
    return make_destination_command_from_template(options_.incoming_command, run_directory_);
  }
  PF_ASSIGN(const std::vector<std::string> argv,
            argv_with_hotplug(manifest_.source.argv, manifest_.machine));
  DestinationPlace place;
  place.host = manifest_.source_boot_id == hand_off_.host().boot_id ? DestinationHost::same
                                                                    : DestinationHost::other;
  place.run_directory = run_directory_;
  place.machine_type = manifest_.machine_type;
  place.run_id = run_directory_.substr(run_directory_.rfind('/') + 1);
  place.is_directory = is_directory;
  return make_destination_command(argv, place);
}

Result<void> DestinationMigration::start_vmm() {
  constexpr std::size_t kRunIdChars = 8;
  PF_ASSIGN(const RandomId id, RandomId::make());
  const RunDirectoryOwner owner{manifest_.source.uid, manifest_.source.gid};
  PF_ASSIGN(run_directory_, make_run_directory(common_.run_dir, options_.name,
                                               id.hex().substr(0, kRunIdChars), owner));
  PF_ASSIGN(command_, make_command());
  QemuLaunch launch;
  launch.kind = options_.incoming_command.empty() ? LaunchKind::qemu : LaunchKind::shell;
  launch.executable = options_.incoming_command.empty() ? manifest_.source.executable : "";
  launch.argv = command_.argv;
  launch.working_directory = manifest_.source.working_directory;
  launch.uid = manifest_.source.uid;
  launch.gid = manifest_.source.gid;
  launch.groups = manifest_.source.groups;
  launch.qmp_socket = command_.qmp_socket;
  launch.log_file = run_directory_ + "/qemu.log";
  launch.fifos = command_.fifos;
  auto started = start_qemu(launch, Deadline::after(clock_, kStartBound));
  // QEMU has its memory files open: without names they go when it goes, whatever ends it.
  for (const std::string& file : command_.files_made) ::unlink(file.c_str());
  if (!started) return tl::make_unexpected(std::move(started).error());
  vmm_ = std::move(*started);
  PF_ASSIGN(machine_, describe_machine(*vmm_.qmp, Deadline::after(clock_, kQueryBound)));
  return {};
}

Result<void> DestinationMigration::prepare(const std::string& attempt) {
  PF_ASSIGN(attempt_, hand_off_.directory().open_attempt(attempt));
  PF_TRY(read_manifest_and_state());
  PF_TRY(start_vmm());
  if (const auto found = differences(); !found.empty()) {
    return fail(Errc::invalid,
                fmt::format("the destination's machine differs: {}", fmt::join(found, "; ")));
  }
  RestoreOptions restore;
  restore.order = options_.order;
  restore.placement = options_.placement;
  restore.channel_socket_path = run_directory_ + "/pages.sock";
  restore.run_directory = run_directory_;
  restore.out_of_band_socket_path = command_.out_of_band_socket;
  PF_ASSIGN(restore_, QemuRestore::create(*vmm_.qmp, restore));
  PF_TRY(restore_->prepare(state_, Deadline::after(clock_, kLoadBound)));
  PF_ASSIGN(prepared_reading_.memory, PageReadMemory::make_populated(PageFileReaderOptions{}));
  return common_.fail_points.hit("destination.prepared");
}

std::vector<std::string> DestinationMigration::differences() const {
  return compare_machines(manifest_.machine, machine_, manifest_.source.working_directory);
}

bool DestinationMigration::claims_before_load() const {
  return vmm_.qmp->qemu_version() < kQemuLocksDisksAtContinue;
}

bool DestinationMigration::preload() {
  // What fails here is read again, and reported, when the image is opened.
  if (!unfinished_pages_) {
    auto opened = open_pages_to_read(*attempt_);
    if (!opened) return false;
    unfinished_pages_ = std::move(*opened);
  }
  const auto read = preload_map(*unfinished_pages_, clock_, prepared_reading_.map);
  if (!read) unfinished_pages_.reset();
  return read && *read == PageMapPreload::Progress::more;
}

Result<void> DestinationMigration::open_image() {
  const auto started = clock_.now();
  PF_ASSIGN(state_, read_attempt_state(*attempt_, kStateFileName));
  if (state_.device_sections.empty()) {
    return fail(Errc::corrupt,
                fmt::format("{}/{}: no device sections", attempt_->name, kStateFileName));
  }
  PF_ASSIGN(reader_, open_attempt_pages(*attempt_, common_.store_faults, clock_,
                                        std::move(prepared_reading_)));
  split_["open-image"] = to_ms(clock_.now() - started);
  return {};
}

Result<void> DestinationMigration::load_devices() {
  const auto started = clock_.now();
  PF_TRY(restore_->load_devices(state_, *reader_, Deadline::after(clock_, kLoadBound)));
  split_["load-devices"] = to_ms(clock_.now() - started);
  loaded_ = true;
  return {};
}

// The image is committed and not released yet. Loading it takes no lock and runs nothing; if it is never released, or another one is,
// this QEMU is ended without having run.
Result<void> DestinationMigration::load_early() {
  if (claims_before_load()) return open_image();
  PF_TRY(open_image());
  return load_devices();
}

Result<TakeOver> DestinationMigration::lost_claim() {
  discard();
  return TakeOver::lost;
}

Result<TakeOver> DestinationMigration::take_over(Epoch epoch, const GuestState& state) {
  epoch_ = epoch;
  PF_CHECK(state.image.has_value());
  if (!reader_) PF_TRY(open_image());
  PF_TRY(check_commit(*reader_, state.image->commit));
  PF_TRY(check_disks_unchanged(state.disks));
  if (!claims_before_load()) {
    if (!loaded_) PF_TRY(load_devices());
    PF_TRY(common_.fail_points.hit("destination.loaded"));
    return claim_and_run(epoch, state);
  }
  PF_ASSIGN(const Claim claim, hand_off_.claim(epoch, vmm_.identity));
  if (claim == Claim::lost) return lost_claim();
  PF_TRY(common_.fail_points.hit("destination.after-owner"));
  auto loaded = load_devices();
  if (loaded) loaded = common_.fail_points.hit("destination.loaded");
  if (!loaded) return give_up(epoch, state, loaded.error());
  return run_claimed(epoch, state);
}

Result<void> DestinationMigration::check_vmm_lives() const {
  PF_ASSIGN(const bool alive, is_alive(vmm_.identity));
  if (alive) return {};
  return fail(Errc::gone, fmt::format("the destination's QEMU (pid {}) died: {}", vmm_.identity.pid,
                                      last_lines_of(run_directory_ + "/qemu.log", kLogLines)));
}

Result<TakeOver> DestinationMigration::claim_and_run(Epoch epoch, const GuestState& state) {
  PF_TRY(check_vmm_lives());
  const auto started = clock_.now();
  PF_ASSIGN(const Claim claim, hand_off_.claim(epoch, vmm_.identity));
  split_["owner"] = to_ms(clock_.now() - started);
  if (claim == Claim::lost) return lost_claim();
  PF_TRY(common_.fail_points.hit("destination.after-owner"));
  return run_claimed(epoch, state);
}

// The epoch is ours and the guest did not run: rule 6.
Result<TakeOver> DestinationMigration::give_up(Epoch epoch, const GuestState& state, Error error) {
  discard();
  PF_TRY(hand_off_.give_up(epoch, state));
  return tl::make_unexpected(std::move(error));
}

Result<TakeOver> DestinationMigration::run_claimed(Epoch epoch, const GuestState& state) {
  if (auto lives = check_vmm_lives(); !lives) return give_up(epoch, state, lives.error());
  const auto started = clock_.now();
  // From here the guest may have run for all that others know: the VMM is not ended by us any more.
  ran_ = true;
  PF_TRY(hand_off_.run(epoch, vmm_.identity));
  split_["running"] = to_ms(clock_.now() - started);
  PF_TRY(common_.fail_points.hit("destination.after-running"));
  // This life wrote running.N and has sent no `cont`: its VMM proved dead, the old image may be released again (rule 6).
  if (auto lives = check_vmm_lives(); !lives) {
    PF_TRY(hand_off_.release(epoch, state));
    return tl::make_unexpected(lives.error());
  }
  if (manifest_.run_state == GuestRunState::paused) return TakeOver::runs_here;
  PF_TRY(vmm_.qmp->execute("cont", nlohmann::json::object(), Deadline::after(clock_, kLoadBound)));
  resumed_at_ = clock_.now();
  restore_->begin_prefetch(QemuRestore::GuestIs::resumed);
  split_["cont"] = to_ms(resumed_at_ - started);
  return TakeOver::runs_here;
}

Result<void> DestinationMigration::announce() {
  if (manifest_.run_state == GuestRunState::paused) return {};
  return restore_->announce_self(Deadline::after(clock_, kQueryBound));
}

Result<void> DestinationMigration::finish(
    const std::function<void(const nlohmann::json&)>& on_progress) {
  PF_TRY(common_.fail_points.hit("destination.restoring"));
  {
    // The restore has a thread of its own and this one waits for it: a third one tells how far it
    // is.
    const Ticker ticker(kProgressInterval, [&] { on_progress(restore_json()); });
    PF_TRY(restore_->finish());
  }
  resident_at_ = clock_.now();
  unfinished_pages_.reset();
  return {};
}

Result<void> DestinationMigration::free_image() {
  PF_TRY(hand_off_.resident(epoch_));
  if (options_.keep == KeepImage::yes) return {};
  reader_.reset();
  return hand_off_.remove_older_attempts(epoch_);
}

Result<void> DestinationMigration::add_forwards(const std::vector<HostForward>& forwards) {
  // A destination that was moved before has none on its command line: what the source had says it, not that line. A command of the
  // user's own brings its own.
  if (!options_.incoming_command.empty() || forwards.empty()) return {};
  return add_host_forwards(*vmm_.qmp, forwards, Deadline::after(clock_, kQueryBound));
}

void DestinationMigration::discard() {
  restore_.reset();
  reader_.reset();
  if (vmm_.identity.pid != 0) {
    [[maybe_unused]] const auto ended = end_qemu(vmm_.identity, vmm_.qmp.get(), EndBounds{});
    vmm_ = RunningQemu{};
  }
  if (!run_directory_.empty()) {
    [[maybe_unused]] const auto removed = remove_run_directory(common_.run_dir, run_directory_);
    run_directory_.clear();
  }
}

void DestinationMigration::request_stop() {
  if (restore_) restore_->request_stop();
}

nlohmann::json DestinationMigration::destination_json() const {
  return {{"pid", vmm_.identity.pid}, {"qmp", command_.qmp_socket}};
}

nlohmann::json DestinationMigration::restore_json() const {
  const RestoreStats stats = restore_ ? restore_->stats() : RestoreStats{};
  nlohmann::json json;
  const std::uint64_t sent = stats.pages_demand + stats.pages_prefetched;
  json["status"] = "postcopy-active";
  json["ram"] = {{"total", bytes_of_pages(stats.pages_total)},
                 {"transferred", bytes_of_pages(sent)},
                 {"remaining", bytes_of_pages(stats.pages_total - sent)},
                 {"duplicate", stats.pages_zero},
                 {"page-size", kPageSizeBytes}};
  json["faults"] = {{"count", stats.faults},
                    {"p50-us", stats.fault_p50_us},
                    {"p99-us", stats.fault_p99_us},
                    {"max-us", stats.fault_max_us}};
  const double asked = static_cast<double>(stats.faults + stats.faults_already_sent);
  json["prefetch"] = {{"pages", stats.pages_prefetched},
                      {"hit-rate", sent == 0 ? 0.0 : 1.0 - asked / static_cast<double>(sent)}};
  json["placement"] = name_of(kPlacementNames, stats.placement);
  if (resident_at_ != Nanoseconds(0)) json["time-to-resident"] = to_ms(resident_at_ - resumed_at_);
  return json;
}

}  // namespace pageferry
