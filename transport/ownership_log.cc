// How a record gets its name, and how names are read.
//
// link(2) is the one operation that is exclusive on every POSIX file system, NFS included; rename
// replaces, O_EXCL leaves a half-written file under the final name. Its reply may be lost, and an
// error may come for a link that was made, or will be made when the server wakes. So after every
// error the name is opened freshly:
//
//   there, our claimant id    written, whatever the error said
//   there, another's          taken
//   not there                 no answer. Certain only if the store refused in words (full,
//                             read-only, no permission) and no earlier try is open; else the same
//                             link is tried again until it succeeds or says EEXIST
//
// Each try has a temporary file of its own, because the sync of the last one may have failed: what
// a failed fsync left is never trusted. Unlinking each temporary also keeps a link that still hangs
// from landing.
//
// A directory is synced after reading, too: a tool that died between link and fsync left a record
// that is visible and not yet durable, and whoever acts on it must not see it vanish in a power
// cut.
#include "transport/ownership_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>
#include <vector>

namespace pageferry {
namespace {

constexpr std::string_view kTemporaryPrefix = ".new.";

std::string temporary_name(const OwnershipRecord& record, unsigned number) {
  return fmt::format("{}{}.{}.{}", kTemporaryPrefix, record.writer.claimant.hex(),
                     record.file_name(), number);
}

// The store said no, and an operation that says so has no effect later.
bool is_refusal(const Error& error) {
  switch (error.sys_errno) {
    case ENOSPC:
    case EDQUOT:
    case EROFS:
    case EACCES:
    case EPERM:
    case EMLINK:
    case ENAMETOOLONG:
    case EOPNOTSUPP:
      return true;
    default:
      return false;
  }
}

// One write() under way.
class Writing {
 public:
  Writing(RecordFiles& files, const OwnershipRecord& record, std::string bytes)
      : files_(files), record_(record), name_(record.file_name()), bytes_(std::move(bytes)) {}

  // One try. A value: settled. An error: not settled; certain() says whether the record is surely
  // not there.
  Result<RecordOutcome> attempt() {
    remove_temporary();
    temporary_ = temporary_name(record_, tries_++);
    auto written = files_.write_new(temporary_, bytes_);
    if (!written) return Unexpected(std::move(written).error());
    auto linked = files_.link(temporary_, name_);
    if (linked) {
      unknown_ = true;  // visible, but not durable before the sync below
      return settle(RecordOutcome::Kind::written, std::nullopt);
    }
    const Error refusal = linked.error();
    const bool was_unknown = std::exchange(unknown_, true);
    PF_TRY(files_.refresh_directory());
    PF_ASSIGN(auto found, files_.read_fresh(name_, kRecordBytesMax));
    if (found) {
      PF_ASSIGN(OwnershipRecord holder, decode_record_file(name_, *found));
      if (holder == record_) return settle(RecordOutcome::Kind::written, std::nullopt);
      return settle(RecordOutcome::Kind::taken, std::move(holder));
    }
    if (is_refusal(refusal)) unknown_ = was_unknown;
    return Unexpected(refusal);
  }

  bool certain() const { return !unknown_; }

  // Best effort: gc removes what stays.
  void remove_temporary() {
    if (!temporary_.empty()) static_cast<void>(files_.unlink(temporary_));
    temporary_.clear();
  }

 private:
  Result<RecordOutcome> settle(RecordOutcome::Kind kind, std::optional<OwnershipRecord> winner) {
    PF_TRY(files_.sync_directory());
    return RecordOutcome{kind, std::move(winner)};
  }

  RecordFiles& files_;
  const OwnershipRecord& record_;
  const std::string name_;
  const std::string bytes_;
  std::string temporary_;
  unsigned tries_ = 0;
  bool unknown_ = false;
};

bool is_final(const Error& error) {
  return error.code == Errc::corrupt || error.code == Errc::version;
}

}  // namespace

Result<RecordOutcome> OwnershipLog::write(const OwnershipRecord& record, WhenRefused when_refused,
                                          const CancelSignal& stop) {
  PF_ASSIGN(std::string bytes, encode_record(record));
  Writing writing(*files_, record, std::move(bytes));
  Milliseconds interval = kRetryFirst;
  while (true) {
    auto tried = writing.attempt();
    if (tried || is_final(tried.error())) {
      writing.remove_temporary();
      return tried;
    }
    const bool refused = writing.certain();
    if (refused && (when_refused == WhenRefused::give_up || stop.canceled())) {
      writing.remove_temporary();
      return with_context(std::move(tried).error(), "not written: " + record.file_name());
    }
    if (stop.canceled()) {
      writing.remove_temporary();
      return fail(Errc::canceled, fmt::format("{}: told to stop while its outcome is unknown ({})",
                                              record.file_name(), tried.error().message));
    }
    files_->pause(interval, stop);
    interval = std::min(2 * interval, kRetryLast);
  }
}

Result<std::optional<OwnershipRecord>> OwnershipLog::read_record(RecordKind kind, Epoch epoch) {
  const std::string name = record_file_name(kind, epoch);
  PF_ASSIGN(auto bytes, files_->read_fresh(name, kRecordBytesMax));
  if (!bytes) return std::nullopt;
  PF_ASSIGN(OwnershipRecord record, decode_record_file(name, *bytes));
  return record;
}

Result<EpochRecords> OwnershipLog::read_epoch(Epoch epoch) {
  EpochRecords records;
  PF_ASSIGN(records.owner, read_record(RecordKind::owner, epoch));
  if (!records.owner) {
    return fail(Errc::corrupt, fmt::format("{} is missing, though a later epoch has records",
                                           record_file_name(RecordKind::owner, epoch)));
  }
  PF_ASSIGN(records.fenced, read_record(RecordKind::fenced, epoch));
  PF_ASSIGN(records.released, read_record(RecordKind::released, epoch));
  PF_ASSIGN(records.ended, read_record(RecordKind::ended, epoch));
  PF_ASSIGN(records.resident, read_record(RecordKind::resident, epoch));
  // Rule 4: only now, and no cached "not there" from before those two.
  PF_TRY(files_->refresh_directory());
  PF_ASSIGN(records.running, read_record(RecordKind::running, epoch));
  return records;
}

// The listing may be old, so it only says where to begin: names above it are looked up one by one.
// A hole below is damage: epochs are opened one after the other and nothing is ever removed.
Result<std::optional<Epoch>> OwnershipLog::find_highest() {
  PF_TRY(files_->refresh_directory());
  PF_ASSIGN(const std::vector<std::string> names, files_->list());
  std::set<std::uint32_t> owned;
  for (const std::string& name : names) {
    const auto parsed = parse_record_file_name(name);
    if (parsed && parsed->kind == RecordKind::owner) owned.insert(raw(parsed->epoch));
  }
  std::uint32_t above = 0;  // one above the highest epoch known so far
  for (const std::uint32_t epoch : owned) {
    for (; above < epoch; ++above) {
      PF_ASSIGN(auto missing, read_record(RecordKind::owner, Epoch{above}));
      if (!missing) {
        return fail(Errc::corrupt,
                    fmt::format("owner.{} is missing, but owner.{} is there", above, epoch));
      }
    }
    above = epoch + 1;
  }
  while (above <= kEpochMax) {
    PF_ASSIGN(auto more, read_record(RecordKind::owner, Epoch{above}));
    if (!more) break;
    ++above;
  }
  if (above == 0) return std::nullopt;
  return Epoch{above - 1};
}

Result<OwnershipSnapshot> OwnershipLog::read_down(Depth depth) {
  PF_ASSIGN(const std::optional<Epoch> highest, find_highest());
  OwnershipSnapshot snapshot;
  if (!highest) return snapshot;
  std::uint32_t epoch = raw(*highest);
  while (true) {
    PF_TRY(files_->refresh_directory());
    auto records = read_epoch(Epoch{epoch});
    if (!records) return Unexpected(std::move(records).error());
    const bool enough =
        depth == Depth::enough_for_rule_4 && epoch < raw(*highest) && ends_the_walk(*records);
    snapshot.epochs.push_back(std::move(*records));
    if (enough || epoch == 0) break;
    --epoch;
  }
  snapshot.first = Epoch{epoch};
  std::reverse(snapshot.epochs.begin(), snapshot.epochs.end());
  PF_TRY(files_->sync_directory());
  return snapshot;
}

Result<OwnershipSnapshot> OwnershipLog::read() {
  return read_down(Depth::enough_for_rule_4);
}

Result<OwnershipSnapshot> OwnershipLog::read_all() {
  return read_down(Depth::everything);
}

Result<void> OwnershipLog::remove_leftovers(const RandomId& keep) {
  const std::string kept = fmt::format("{}{}.", kTemporaryPrefix, keep.hex());
  PF_ASSIGN(const std::vector<std::string> names, files_->list());
  for (const std::string& name : names) {
    if (!name.starts_with(kTemporaryPrefix) || name.starts_with(kept)) continue;
    auto removed = files_->unlink(name);
    if (!removed && removed.error().code != Errc::not_found) return removed;
  }
  return {};
}

}  // namespace pageferry
