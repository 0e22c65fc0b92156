// Each record is written once with the claimant id of this life. Steps before the point of no
// return take "no" from the store for an answer; steps after it repeat until the store accepts,
// because the other side of "unknown" would be two owners.
#include "tools/pageferry/hand_off.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <ctime>

namespace pageferry {

HandOff::HandOff(VmDirectory directory, OwnershipLog log, HostIdentity host, ProcessIdentity tool,
                 RandomId claimant, const CancelSignal& stop)
    : directory_(std::move(directory)),
      log_(std::make_unique<OwnershipLog>(std::move(log))),
      host_(std::move(host)),
      tool_(tool),
      claimant_(claimant),
      stop_(stop) {}

Result<std::unique_ptr<HandOff>> HandOff::open(const std::string& store, const std::string& vm_name,
                                               VmDirectory::IfMissing if_missing,
                                               const CancelSignal& stop) {
  PF_ASSIGN(VmDirectory directory, VmDirectory::open(store, vm_name, if_missing));
  PF_ASSIGN(OwnershipLog log, directory.open_log());
  PF_ASSIGN(HostIdentity host, this_host());
  PF_ASSIGN(const ProcessIdentity tool, this_process());
  PF_ASSIGN(const RandomId claimant, RandomId::make());
  return std::unique_ptr<HandOff>(
      new HandOff(std::move(directory), std::move(log), std::move(host), tool, claimant, stop));
}

OwnershipRecord HandOff::record(Epoch epoch, RecordFact fact,
                                std::optional<ProcessIdentity> vmm) const {
  OwnershipRecord made;
  made.epoch = epoch;
  made.writer.claimant = claimant_;
  made.writer.host = host_;
  made.writer.tool = tool_;
  made.writer.vmm = vmm;
  made.writer.wall_time_s = static_cast<std::int64_t>(std::time(nullptr));
  made.fact = std::move(fact);
  return made;
}

Result<RecordOutcome> HandOff::write(const OwnershipRecord& record, WhenRefused when_refused) {
  auto outcome = log_->write(record, when_refused, stop_);
  if (!outcome) return with_context(std::move(outcome).error(), record.file_name());
  return outcome;
}

Result<Claim> HandOff::claim(Epoch epoch, const ProcessIdentity& vmm, WhenRefused when_refused) {
  PF_ASSIGN(const RecordOutcome outcome, write(record(epoch, OwnerFact{}, vmm), when_refused));
  return outcome.kind == RecordOutcome::Kind::written ? Claim::won : Claim::lost;
}

Result<void> HandOff::run(Epoch epoch, const ProcessIdentity& vmm) {
  PF_ASSIGN(
      const RecordOutcome outcome,
      write(record(epoch, RunningFact{RunningFact::Meaning::runs}, vmm), WhenRefused::repeat));
  if (outcome.kind == RecordOutcome::Kind::written) return {};
  return fail(
      Errc::not_owner,
      fmt::format("running.{} was written by somebody else; the guest is not continued here",
                  raw(epoch)));
}

Result<void> HandOff::give_up(Epoch epoch, const GuestState& state) {
  PF_ASSIGN(const RecordOutcome outcome,
            write(record(epoch, RunningFact{RunningFact::Meaning::never}, std::nullopt),
                  WhenRefused::repeat));
  const bool never_ran = outcome.kind == RecordOutcome::Kind::written ||
                         (outcome.winner && std::get<RunningFact>(outcome.winner->fact).meaning ==
                                                RunningFact::Meaning::never);
  return release(epoch, never_ran ? state : GuestState{});
}

Result<void> HandOff::release(Epoch epoch, const GuestState& state) {
  PF_ASSIGN(const RecordOutcome outcome,
            write(record(epoch, ReleasedFact{state}, std::nullopt), WhenRefused::repeat));
  if (outcome.kind == RecordOutcome::Kind::written) return {};
  return fail(
      Errc::not_owner,
      fmt::format("released.{} was written by an earlier tool; its content holds", raw(epoch)));
}

Result<void> HandOff::resident(Epoch epoch) {
  PF_ASSIGN([[maybe_unused]] const RecordOutcome outcome,
            write(record(epoch, ResidentFact{}, std::nullopt), WhenRefused::give_up));
  return {};
}

Result<void> HandOff::fenced(Epoch epoch, const FencedFact& fact) {
  PF_ASSIGN([[maybe_unused]] const RecordOutcome outcome,
            write(record(epoch, fact, std::nullopt), WhenRefused::give_up));
  return {};
}

Result<void> HandOff::ended(Epoch epoch) {
  PF_ASSIGN([[maybe_unused]] const RecordOutcome outcome,
            write(record(epoch, EndedFact{}, std::nullopt), WhenRefused::give_up));
  return {};
}

namespace {

Result<void> remove_attempts_before(const VmDirectory& directory, Epoch end, std::string_view but) {
  PF_ASSIGN(const std::vector<std::string> names, directory.list_attempts());
  for (const std::string& name : names) {
    const auto parsed = parse_attempt_name(name);
    if (parsed && raw(parsed->epoch) < raw(end) && name != but) {
      PF_TRY(directory.remove_attempt(name));
    }
  }
  return {};
}

}  // namespace

Result<void> HandOff::remove_attempts_superseded_by(const std::string& kept) {
  const auto name = parse_attempt_name(kept);
  if (!name) {
    return fail(Errc::invalid, fmt::format("a record names the image '{}', which is no attempt's "
                                           "name: no older image is removed",
                                           kept));
  }
  return remove_attempts_before(directory_, next(name->epoch), kept);
}

Result<void> HandOff::remove_older_attempts(Epoch resident_epoch) {
  return remove_attempts_before(directory_, resident_epoch, {});
}

namespace {

Result<DiskFile> stat_disk(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return syscall_error("stat", path);
  DiskFile disk;
  disk.path = path;
  // A block device has no size and no meaningful mtime here: only that it is there can be checked.
  if (S_ISREG(status.st_mode)) {
    constexpr std::int64_t kNanosecondsPerSecond = 1'000'000'000;
    disk.size_bytes = static_cast<std::uint64_t>(status.st_size);
    disk.mtime_ns = status.st_mtim.tv_sec * kNanosecondsPerSecond + status.st_mtim.tv_nsec;
  }
  return disk;
}

}  // namespace

Result<std::vector<DiskFile>> stat_disks(const std::vector<std::string>& paths) {
  std::vector<DiskFile> disks;
  for (const std::string& path : paths) {
    PF_ASSIGN(DiskFile disk, stat_disk(path));
    disks.push_back(std::move(disk));
  }
  return disks;
}

Result<void> check_disks_unchanged(const std::vector<DiskFile>& disks) {
  for (const DiskFile& disk : disks) {
    PF_ASSIGN(const DiskFile now, stat_disk(disk.path));
    if (now == disk) continue;
    return fail(
        Errc::invalid,
        fmt::format("disk {} changed since the guest was released: size {} then, {} now; mtime "
                    "{} ns then, {} ns now; its memory image is stale",
                    disk.path, disk.size_bytes, now.size_bytes, disk.mtime_ns, now.mtime_ns));
  }
  return {};
}

}  // namespace pageferry
