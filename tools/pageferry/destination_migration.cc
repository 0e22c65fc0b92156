// The order inside take_over() is the point of this file: what can fail is done before the claim,
// except that QEMU up to 7.2 takes the disk locks when it loads the package, so that there the
// claim comes first (docs/ownership-protocol.md, rule 7).
#include "tools/pageferry/destination_migration.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tools/pageferry/attempt_files.h"
#include "tools/pageferry/base_image.h"
#include "tools/pageferry/option_names.h"
#include "tools/pageferry/ticker.h"
#include "tools/pageferry/touch_file.h"
#include "vmstate/qemu_spawn.h"
#include "vmstate/run_directory.h"

namespace pageferry {
namespace {

constexpr std::size_t kLogLines = 4;
constexpr Seconds kStartBound{60};
constexpr Seconds kQueryBound{30};
constexpr Seconds kLoadBound{60};
constexpr Milliseconds kProgressInterval{250};
}  // namespace

std::string image_stays_text(const Error& error) {
  return fmt::format("every page is here, but the image stays on the store: {}", error.message);
}

DestinationMigration::~DestinationMigration() {
  if (!ran_) discard();
}

Result<void> DestinationMigration::start_vmm() {
  constexpr std::size_t kRunIdChars = 8;
  PF_ASSIGN(const RandomId id, RandomId::make());
  const RunDirectoryOwner owner{manifest_.source.uid, manifest_.source.gid};
  PF_ASSIGN(run_directory_, make_run_directory(common_.run_dir, options_.name,
                                               id.hex().substr(0, kRunIdChars), owner));
  DestinationPlan plan;
  plan.run_directory = run_directory_;
  plan.incoming_command = options_.incoming_command;
  plan.host = manifest_.source_boot_id == hand_off_.host().boot_id ? DestinationHost::same
                                                                   : DestinationHost::other;
  plan.order = options_.order;
  plan.placement = options_.placement;
  vmm_ = DestinationVmm::make(manifest_, plan, clock_);
  return vmm_->start(Deadline::after(clock_, kStartBound));
}

Result<void> DestinationMigration::prepare(const std::string& attempt) {
  PF_ASSIGN(attempt_, hand_off_.directory().open_attempt(attempt));
  PF_ASSIGN(const std::string manifest,
            read_attempt_text(*attempt_, std::string(kManifestFileName)));
  PF_ASSIGN(manifest_, decode_manifest(manifest));
  PF_TRY(check_bases_are_there(*attempt_, manifest_));
  std::vector<std::byte> prepare_file;
  if (!manifest_.hook) {
    PF_ASSIGN(prepare_file, read_attempt_file(*attempt_, kPrepareFileName));
  }
  PF_TRY(start_vmm());
  if (const auto found = vmm_->differences(); !found.empty()) {
    return fail(Errc::invalid,
                fmt::format("the destination's machine differs: {}", fmt::join(found, "; ")));
  }
  if (auto done = vmm_->prepare(prepare_file, Deadline::after(clock_, kLoadBound)); !done) {
    return in_file(std::move(done).error(), kPrepareFileName);
  }
  follow_record();
  PF_ASSIGN(prepared_reading_.memory, PageReadMemory::make_populated(PageFileReaderOptions{}));
  return common_.fail_points.hit("destination.prepared");
}

// Now, while the source still runs: nothing of it is left for the blackout.
void DestinationMigration::follow_record() {
  order_ = options_.order;
  if (order_ != PrefetchOrder::recorded) return;
  const auto record = read_touch_file(hand_off_.directory(), vmm_->layout());
  if (record && *record) return vmm_->follow(**record);
  order_ = PrefetchOrder::hot;
  why_not_recorded_ =
      fmt::format("prefetch order 'hot', not 'recorded': {}",
                  record ? "no earlier move of this VM left a record" : record.error().message);
}

// A file that cannot be believed is named.
Unexpected DestinationMigration::in_file(Error error, const char* file_name) const {
  if (error.code != Errc::corrupt && error.code != Errc::version) {
    return tl::make_unexpected(std::move(error));
  }
  return with_context(std::move(error), fmt::format("{}/{}", attempt_->name, file_name));
}

void DestinationMigration::forget(const std::vector<MapBlockRun>& rewritten) {
  for (const MapBlockRun& run : rewritten) prepared_reading_.map.forget(run);
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
  PF_ASSIGN(const std::vector<std::byte> state, read_attempt_file(*attempt_, kStateFileName));
  if (auto taken = vmm_->take_state(state); !taken) {
    return in_file(std::move(taken).error(), kStateFileName);
  }
  PF_ASSIGN(reader_, open_attempt_pages(*attempt_, common_.store_faults, clock_,
                                        std::move(prepared_reading_)));
  split_["open-image"] = to_ms(clock_.now() - started);
  return {};
}

Result<void> DestinationMigration::load_devices() {
  const auto started = clock_.now();
  PF_TRY(vmm_->load(*reader_, Deadline::after(clock_, kLoadBound)));
  split_["load-devices"] = to_ms(clock_.now() - started);
  loaded_ = true;
  return {};
}

// The image is committed and not released yet. Loading it takes no lock and runs nothing; if it is never released, or another one is,
// this QEMU is ended without having run.
Result<void> DestinationMigration::load_early() {
  if (vmm_->claims_before_load()) return open_image();
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
  if (!vmm_->claims_before_load()) {
    if (!loaded_) PF_TRY(load_devices());
    PF_TRY(common_.fail_points.hit("destination.loaded"));
    return claim_and_run(epoch, state);
  }
  PF_ASSIGN(const Claim claim, hand_off_.claim(epoch, vmm_->process()));
  if (claim == Claim::lost) return lost_claim();
  PF_TRY(common_.fail_points.hit("destination.after-owner"));
  auto loaded = load_devices();
  if (loaded) loaded = common_.fail_points.hit("destination.loaded");
  if (!loaded) return give_up(epoch, state, loaded.error());
  return run_claimed(epoch, state);
}

Result<void> DestinationMigration::check_vmm_lives() const {
  PF_ASSIGN(const bool alive, is_alive(vmm_->process()));
  if (alive) return {};
  return fail(Errc::gone,
              fmt::format("the destination's VMM (pid {}) died: {}", vmm_->process().pid,
                          last_lines_of(run_directory_ + "/qemu.log", kLogLines)));
}

Result<TakeOver> DestinationMigration::claim_and_run(Epoch epoch, const GuestState& state) {
  PF_TRY(check_vmm_lives());
  const auto started = clock_.now();
  PF_ASSIGN(const Claim claim, hand_off_.claim(epoch, vmm_->process()));
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
  PF_TRY(hand_off_.run(epoch, vmm_->process()));
  split_["running"] = to_ms(clock_.now() - started);
  PF_TRY(common_.fail_points.hit("destination.after-running"));
  // This life wrote running.N and has sent no `cont`: its VMM proved dead, the old image may be released again (rule 6).
  if (auto lives = check_vmm_lives(); !lives) {
    PF_TRY(hand_off_.release(epoch, state));
    return tl::make_unexpected(lives.error());
  }
  if (manifest_.run_state == GuestRunState::paused) return TakeOver::runs_here;
  PF_TRY(vmm_->resume(raw(epoch), Deadline::after(clock_, kLoadBound)));
  resumed_at_ = clock_.now();
  vmm_->begin_prefetch();
  split_["cont"] = to_ms(resumed_at_ - started);
  return TakeOver::runs_here;
}

Result<void> DestinationMigration::announce() {
  if (manifest_.run_state == GuestRunState::paused) return {};
  return vmm_->announce(Deadline::after(clock_, kQueryBound));
}

Result<void> DestinationMigration::finish(
    const std::function<void(const nlohmann::json&)>& on_progress) {
  PF_TRY(common_.fail_points.hit("destination.restoring"));
  {
    // The restore has a thread of its own and this one waits for it: a third one tells how far it
    // is.
    const Ticker ticker(kProgressInterval, [&] { on_progress(restore_json()); });
    PF_TRY(vmm_->finish());
  }
  resident_at_ = clock_.now();
  unfinished_pages_.reset();
  return {};
}

std::vector<std::string> DestinationMigration::settle() {
  std::vector<std::string> warnings;
  if (!why_not_recorded_.empty()) warnings.push_back(why_not_recorded_);
  // The only harm: the next move does not know what this guest touches first.
  auto kept = write_touch_file(hand_off_.directory(), vmm_->touches(), vmm_->layout());
  if (!kept) {
    warnings.push_back(fmt::format(
        "the order in which the guest touched its pages was not kept: {}", kept.error().message));
  }
  if (auto freed = free_image(); !freed) warnings.push_back(image_stays_text(freed.error()));
  return warnings;
}

Result<void> DestinationMigration::free_image() {
  PF_TRY(hand_off_.resident(epoch_));
  if (options_.keep == KeepImage::yes) {
    return hand_off_.remove_attempts_superseded_by(attempt_->name);
  }
  reader_.reset();
  return hand_off_.remove_older_attempts(epoch_);
}

Result<void> DestinationMigration::add_forwards(const std::vector<HostForward>& forwards) {
  return vmm_->add_forwards(forwards, Deadline::after(clock_, kQueryBound));
}

void DestinationMigration::discard() {
  if (vmm_) vmm_->end();
  reader_.reset();
  if (run_directory_.empty()) return;
  [[maybe_unused]] const auto removed = remove_run_directory(common_.run_dir, run_directory_);
  run_directory_.clear();
}

void DestinationMigration::request_stop() {
  if (vmm_) vmm_->request_stop();
}

nlohmann::json DestinationMigration::destination_json() const {
  return vmm_->where();
}

nlohmann::json DestinationMigration::restore_json() const {
  const RestoreStats stats = vmm_ ? vmm_->stats() : RestoreStats{};
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
  json["prefetch"] = {{"order", name_of(kPrefetchOrderNames, order_)},
                      {"pages", stats.pages_prefetched},
                      {"hit-rate", sent == 0 ? 0.0 : 1.0 - asked / static_cast<double>(sent)}};
  json["placement"] = name_of(kPlacementNames, stats.placement);
  if (resident_at_ != Nanoseconds(0)) json["time-to-resident"] = to_ms(resident_at_ - resumed_at_);
  return json;
}

}  // namespace pageferry
