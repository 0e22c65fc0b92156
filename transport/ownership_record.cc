// The text form of a record, and the only reader of it.
//
//   pageferry-record 1\n
//   {"kind":"owner","epoch":3, ...}\n        one line of JSON, keys in fixed order, ASCII
//   crc32c 1a2b3c4d\n                        over everything before this line
//
// Text, because in an emergency a person with `cat` must be able to read who owns a guest; strict,
// because a machine decides by it who runs one. The decoder has one rule instead of many: it takes
// what it knows out of the JSON, encodes that again, and refuses the file unless every byte is the
// same. So unknown or doubled keys, other spacing, other number forms and out-of-range values
// cannot be told apart from damage, and no second spelling of a record exists.
//
// Paths may hold any byte; whatever is not printable ASCII is written %XX, so the JSON is always
// valid text.
#include "transport/ownership_record.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

#include "transport/crc32c.h"

namespace pageferry {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kMagic = "pageferry-record ";
constexpr std::string_view kVersionLine = "pageferry-record 1\n";
constexpr std::string_view kCrcWord = "crc32c ";
constexpr std::size_t kCrcLineBytes = 7 + 8 + 1;
constexpr std::int64_t kWallTimeMax = 253'402'300'799;  // the last second of the year 9999

constexpr std::array<std::string_view, kRecordKinds> kKindNames = {
    "owner", "running", "released", "resident", "fenced", "ended"};
constexpr std::array<std::string_view, 3> kMeansNames = {"fence-agent", "operator", "reboot"};

std::uint32_t crc_of(std::string_view text) {
  return crc32c(std::as_bytes(std::span(text.data(), text.size())));
}

// ---- text that is not JSON's own ----

std::string escaped(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) {
    const bool plain = c >= ' ' && c < '\x7f' && c != '%';
    if (plain) {
      text.push_back(c);
    } else {
      text += fmt::format("%{:02x}", static_cast<unsigned char>(c));
    }
  }
  return text;
}

// Lenient: the comparison with the encoder's bytes catches every other spelling.
std::string unescaped(std::string_view text) {
  std::string bytes;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    if (text[i] == '%' && i + 2 < text.size() &&
        std::from_chars(&text[i + 1], &text[i + 1] + 2, value, 16).ptr == &text[i + 1] + 2) {
      bytes.push_back(static_cast<char>(value));
      i += 2;
    } else {
      bytes.push_back(text[i]);
    }
  }
  return bytes;
}

bool is_attempt_text(std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '-';
  };
  return !name.empty() && name.size() <= kAttemptNameBytesMax && name.front() != '.' &&
         std::all_of(name.begin(), name.end(), allowed);
}

// ---- limits ----

Result<void> check_process(const ProcessIdentity& process, std::string_view field) {
  if (process.pid > 0 && process.start_ticks <= INT64_MAX) return {};
  return fail(Errc::invalid, fmt::format("{}: pid {} start {}: want pid > 0, start < 2^63", field,
                                         process.pid, process.start_ticks));
}

Result<void> check_state(const GuestState& state) {
  if (state.image && !is_attempt_text(state.image->attempt)) {
    return fail(Errc::invalid,
                fmt::format("image: attempt name of {} bytes: want 1..{} of [a-z0-9.-]",
                            state.image->attempt.size(), kAttemptNameBytesMax));
  }
  if (state.memory) {
    PF_TRY(validate_host(state.memory->host));
    PF_TRY(check_process(state.memory->process, "memory"));
  }
  if (state.disks.size() > kRecordDisksMax) {
    return fail(Errc::invalid,
                fmt::format("disks: {} of them, limit {}", state.disks.size(), kRecordDisksMax));
  }
  for (const DiskFile& disk : state.disks) {
    if (disk.path.empty() || disk.path.front() != '/' || disk.path.size() > kDiskPathBytesMax ||
        disk.path.find('\0') != std::string::npos) {
      return fail(Errc::invalid,
                  fmt::format("disk path '{}': want absolute, at most {} bytes",
                              escaped(disk.path.substr(0, kDiskPathBytesMax)), kDiskPathBytesMax));
    }
    if (disk.size_bytes > INT64_MAX) {
      return fail(Errc::invalid, fmt::format("disk {}: size {}, limit 2^63-1", escaped(disk.path),
                                             disk.size_bytes));
    }
  }
  return {};
}

Result<void> check_record(const OwnershipRecord& record) {
  if (raw(record.epoch) > kEpochMax) {
    return fail(Errc::invalid, fmt::format("epoch {}, limit {}", raw(record.epoch), kEpochMax));
  }
  const RecordWriter& writer = record.writer;
  PF_TRY(validate_host(writer.host));
  PF_TRY(check_process(writer.tool, "tool"));
  if (writer.vmm) PF_TRY(check_process(*writer.vmm, "vmm"));
  if (writer.wall_time_s < 0 || writer.wall_time_s > kWallTimeMax) {
    return fail(Errc::invalid,
                fmt::format("wall time {}, limit 0..{}", writer.wall_time_s, kWallTimeMax));
  }
  const auto* running = std::get_if<RunningFact>(&record.fact);
  const bool needs_vmm = std::holds_alternative<OwnerFact>(record.fact) ||
                         (running != nullptr && running->meaning == RunningFact::Meaning::runs);
  if (needs_vmm && !writer.vmm) {
    return fail(Errc::invalid, fmt::format("{}: names no VMM", record.file_name()));
  }
  if (const auto* released = std::get_if<ReleasedFact>(&record.fact)) {
    PF_TRY(check_state(released->state));
  }
  if (const auto* fenced = std::get_if<FencedFact>(&record.fact);
      fenced != nullptr && fenced->detail.size() > kFencingDetailBytesMax) {
    return fail(Errc::invalid, fmt::format("fencing detail of {} bytes, limit {}",
                                           fenced->detail.size(), kFencingDetailBytesMax));
  }
  return {};
}

// ---- to JSON ----

Json json_of(const ProcessIdentity& process) {
  return Json{{"pid", process.pid}, {"start", process.start_ticks}};
}

Json json_of(const HostIdentity& host) {
  return Json{{"name", host.name}, {"machine", host.machine}, {"boot", host.boot_id}};
}

Json json_of(const GuestState& state) {
  Json json = Json::object();
  json["image"] =
      state.image ? Json{{"attempt", state.image->attempt}, {"commit", state.image->commit.hex()}}
                  : Json(nullptr);
  json["memory"] = state.memory ? Json{{"host", json_of(state.memory->host)},
                                       {"vmm", json_of(state.memory->process)}}
                                : Json(nullptr);
  json["disks"] = Json::array();
  for (const DiskFile& disk : state.disks) {
    json["disks"].push_back(
        Json{{"path", escaped(disk.path)}, {"size", disk.size_bytes}, {"mtime-ns", disk.mtime_ns}});
  }
  return json;
}

struct FactWriter {
  Json& json;
  void operator()(const OwnerFact&) const {}
  void operator()(const RunningFact& fact) const {
    json["guest"] = fact.meaning == RunningFact::Meaning::runs ? "runs" : "void";
  }
  void operator()(const ReleasedFact& fact) const { json["state"] = json_of(fact.state); }
  void operator()(const ResidentFact&) const {}
  void operator()(const FencedFact& fact) const {
    json["owner"] = fact.owner_claimant.hex();
    json["means"] = kMeansNames[static_cast<std::size_t>(fact.means)];
    json["detail"] = escaped(fact.detail);
  }
  void operator()(const EndedFact&) const {}
};

Json json_of(const OwnershipRecord& record) {
  Json json = Json::object();
  json["kind"] = record_kind_name(record.kind());
  json["epoch"] = raw(record.epoch);
  json["claimant"] = record.writer.claimant.hex();
  json["host"] = json_of(record.writer.host);
  json["tool"] = json_of(record.writer.tool);
  json["vmm"] = record.writer.vmm ? json_of(*record.writer.vmm) : Json(nullptr);
  json["time"] = record.writer.wall_time_s;
  std::visit(FactWriter{json}, record.fact);
  return json;
}

// ---- from JSON: each takes what it needs; a wrong type is an error, the rest is the comparison's
// business ----

Unexpected wrong_field(std::string_view field, std::string_view want) {
  return fail(Errc::corrupt, fmt::format("field '{}': want {}", field, want));
}

Result<std::string> text_in(const Json& json, const char* field) {
  const auto found = json.find(field);
  if (found == json.end() || !found->is_string()) return wrong_field(field, "a string");
  return found->get_ref<const std::string&>();
}

// 0..max, and min (<= 0) below.
Result<std::int64_t> number_in(const Json& json, const char* field, std::int64_t min,
                               std::int64_t max) {
  const auto found = json.find(field);
  const std::string want = fmt::format("an integer in {}..{}", min, max);
  if (found == json.end() || !found->is_number_integer()) return wrong_field(field, want);
  if (found->is_number_unsigned() && found->get<std::uint64_t>() > std::uint64_t{INT64_MAX}) {
    return wrong_field(field, want);
  }
  const auto value = found->get<std::int64_t>();
  if (value < min || value > max) return wrong_field(field, want);
  return value;
}

Result<const Json*> object_in(const Json& json, const char* field) {
  const auto found = json.find(field);
  if (found == json.end() || !(found->is_object() || found->is_null())) {
    return wrong_field(field, "an object or null");
  }
  return &*found;
}

Result<RandomId> id_in(const Json& json, const char* field) {
  PF_ASSIGN(const std::string text, text_in(json, field));
  auto id = RandomId::parse(text);
  if (!id) return wrong_field(field, "32 of [0-9a-f]");
  return *id;
}

Result<ProcessIdentity> process_in(const Json& json, const char* field) {
  PF_ASSIGN(const Json* object, object_in(json, field));
  PF_ASSIGN(const std::int64_t pid, number_in(*object, "pid", 1, INT32_MAX));
  PF_ASSIGN(const std::int64_t start, number_in(*object, "start", 0, INT64_MAX));
  return ProcessIdentity{static_cast<pid_t>(pid), static_cast<std::uint64_t>(start)};
}

Result<HostIdentity> host_in(const Json& json, const char* field) {
  PF_ASSIGN(const Json* object, object_in(json, field));
  HostIdentity host;
  PF_ASSIGN(host.name, text_in(*object, "name"));
  PF_ASSIGN(host.machine, text_in(*object, "machine"));
  PF_ASSIGN(host.boot_id, text_in(*object, "boot"));
  return host;
}

Result<std::vector<DiskFile>> disks_in(const Json& json) {
  const auto found = json.find("disks");
  if (found == json.end() || !found->is_array() || found->size() > kRecordDisksMax) {
    return wrong_field("disks", fmt::format("an array of at most {}", kRecordDisksMax));
  }
  std::vector<DiskFile> disks;
  for (const Json& entry : *found) {
    DiskFile disk;
    PF_ASSIGN(const std::string path, text_in(entry, "path"));
    disk.path = unescaped(path);
    PF_ASSIGN(const std::int64_t size, number_in(entry, "size", 0, INT64_MAX));
    disk.size_bytes = static_cast<std::uint64_t>(size);
    PF_ASSIGN(disk.mtime_ns, number_in(entry, "mtime-ns", INT64_MIN, INT64_MAX));
    disks.push_back(std::move(disk));
  }
  return disks;
}

Result<GuestState> state_in(const Json& json) {
  PF_ASSIGN(const Json* object, object_in(json, "state"));
  GuestState state;
  PF_ASSIGN(const Json* image, object_in(*object, "image"));
  if (!image->is_null()) {
    ImageRef ref;
    PF_ASSIGN(ref.attempt, text_in(*image, "attempt"));
    PF_ASSIGN(ref.commit, id_in(*image, "commit"));
    state.image = std::move(ref);
  }
  PF_ASSIGN(const Json* memory, object_in(*object, "memory"));
  if (!memory->is_null()) {
    StoppedVmm vmm;
    PF_ASSIGN(vmm.host, host_in(*memory, "host"));
    PF_ASSIGN(vmm.process, process_in(*memory, "vmm"));
    state.memory = std::move(vmm);
  }
  PF_ASSIGN(state.disks, disks_in(*object));
  return state;
}

Result<RecordFact> fenced_in(const Json& json) {
  FencedFact fact;
  PF_ASSIGN(fact.owner_claimant, id_in(json, "owner"));
  PF_ASSIGN(const std::string means, text_in(json, "means"));
  const auto* const found = std::find(kMeansNames.begin(), kMeansNames.end(), means);
  if (found == kMeansNames.end()) return wrong_field("means", "fence-agent, operator or reboot");
  fact.means = static_cast<FencingMeans>(found - kMeansNames.begin());
  PF_ASSIGN(const std::string detail, text_in(json, "detail"));
  fact.detail = unescaped(detail);
  return RecordFact(std::move(fact));
}

Result<RecordFact> fact_in(const Json& json, RecordKind kind) {
  switch (kind) {
    case RecordKind::owner:
      return RecordFact(OwnerFact{});
    case RecordKind::running: {
      PF_ASSIGN(const std::string guest, text_in(json, "guest"));
      return RecordFact(
          RunningFact{guest == "runs" ? RunningFact::Meaning::runs : RunningFact::Meaning::never});
    }
    case RecordKind::released: {
      PF_ASSIGN(GuestState state, state_in(json));
      return RecordFact(ReleasedFact{std::move(state)});
    }
    case RecordKind::resident:
      return RecordFact(ResidentFact{});
    case RecordKind::fenced:
      return fenced_in(json);
    case RecordKind::ended:
      return RecordFact(EndedFact{});
  }
  return wrong_field("kind", "a known kind");
}

Result<OwnershipRecord> record_in(const Json& json) {
  if (!json.is_object()) return fail(Errc::corrupt, "the second line is no JSON object");
  OwnershipRecord record;
  PF_ASSIGN(const std::string kind_text, text_in(json, "kind"));
  const auto* const kind = std::find(kKindNames.begin(), kKindNames.end(), kind_text);
  if (kind == kKindNames.end()) return wrong_field("kind", "a known kind");
  PF_ASSIGN(const std::int64_t epoch, number_in(json, "epoch", 0, kEpochMax));
  record.epoch = Epoch{static_cast<std::uint32_t>(epoch)};
  PF_ASSIGN(record.writer.claimant, id_in(json, "claimant"));
  PF_ASSIGN(record.writer.host, host_in(json, "host"));
  PF_ASSIGN(record.writer.tool, process_in(json, "tool"));
  PF_ASSIGN(const Json* vmm, object_in(json, "vmm"));
  if (!vmm->is_null()) {
    PF_ASSIGN(record.writer.vmm, process_in(json, "vmm"));
  }
  PF_ASSIGN(record.writer.wall_time_s, number_in(json, "time", 0, kWallTimeMax));
  PF_ASSIGN(record.fact, fact_in(json, static_cast<RecordKind>(kind - kKindNames.begin())));
  return record;
}

// The JSON line of a file whose frame (length, version, checksum) is right.
Result<std::string_view> body_of(std::string_view bytes) {
  if (bytes.size() > kRecordBytesMax) {
    return fail(Errc::corrupt, fmt::format("{} bytes, limit {}", bytes.size(), kRecordBytesMax));
  }
  if (!bytes.starts_with(kMagic)) return fail(Errc::corrupt, "the first line is not a record's");
  if (!bytes.starts_with(kVersionLine)) {
    const std::string_view line = bytes.substr(kMagic.size(), 16);
    return fail(Errc::version, fmt::format("format version '{}', this program knows 1",
                                           escaped(line.substr(0, line.find('\n')))));
  }
  if (bytes.size() < kVersionLine.size() + kCrcLineBytes) {
    return fail(Errc::corrupt, fmt::format("{} bytes: it ends too early", bytes.size()));
  }
  const std::string_view covered = bytes.substr(0, bytes.size() - kCrcLineBytes);
  const std::string want = fmt::format("{}{:08x}\n", kCrcWord, crc_of(covered));
  const std::string_view have = bytes.substr(covered.size());
  if (have != want) {
    return fail(Errc::corrupt, fmt::format("last line is '{}', want '{}'",
                                           escaped(have.substr(0, have.size() - 1)),
                                           want.substr(0, want.size() - 1)));
  }
  return covered.substr(kVersionLine.size());
}

}  // namespace

std::string_view record_kind_name(RecordKind kind) {
  return kKindNames[static_cast<std::size_t>(kind)];
}

std::string record_file_name(RecordKind kind, Epoch epoch) {
  return fmt::format("{}.{}", record_kind_name(kind), raw(epoch));
}

std::optional<RecordName> parse_record_file_name(std::string_view name) {
  const std::size_t dot = name.find('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const auto* const kind = std::find(kKindNames.begin(), kKindNames.end(), name.substr(0, dot));
  if (kind == kKindNames.end()) return std::nullopt;
  const std::string_view digits = name.substr(dot + 1);
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || value > kEpochMax) return std::nullopt;
  const RecordName parsed{static_cast<RecordKind>(kind - kKindNames.begin()), Epoch{value}};
  // One spelling only: no leading zero, nothing after the digits.
  if (record_file_name(parsed.kind, parsed.epoch) != name) return std::nullopt;
  return parsed;
}

Result<std::string> encode_record(const OwnershipRecord& record) {
  PF_TRY(check_record(record));
  std::string bytes(kVersionLine);
  try {
    bytes += json_of(record).dump(-1, ' ', true);
  } catch (const std::exception& error) {
    return fail(Errc::invalid, fmt::format("{}: {}", record.file_name(), error.what()));
  }
  bytes += '\n';
  bytes += fmt::format("{}{:08x}\n", kCrcWord, crc_of(bytes));
  if (bytes.size() > kRecordBytesMax) {
    return fail(Errc::invalid, fmt::format("{}: {} bytes, limit {}", record.file_name(),
                                           bytes.size(), kRecordBytesMax));
  }
  return bytes;
}

Result<OwnershipRecord> decode_record(std::string_view bytes) {
  PF_ASSIGN(const std::string_view body, body_of(bytes));
  const Json json = Json::parse(body.begin(), body.end(), nullptr, false);
  if (json.is_discarded()) return fail(Errc::corrupt, "the second line is no JSON");
  PF_ASSIGN(OwnershipRecord record, record_in(json));
  auto again = encode_record(record);
  if (!again) return fail(Errc::corrupt, std::move(again).error().message);
  if (*again != bytes) {
    return fail(Errc::corrupt, "it is not spelled as this program spells a record");
  }
  return record;
}

Result<OwnershipRecord> decode_record_file(std::string_view file_name, std::string_view bytes) {
  auto record = decode_record(bytes);
  if (!record) return with_context(std::move(record).error(), file_name);
  if (record->file_name() != file_name) {
    return fail(Errc::corrupt, fmt::format("{}: it holds {}", file_name, record->file_name()));
  }
  return record;
}

}  // namespace pageferry
