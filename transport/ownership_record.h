// OwnershipRecord: one fact about who may run a guest in one epoch, as it stands in one small file
// on the store. Created once, exclusively, never changed. docs/ownership-protocol.md has every byte
// and the rules.
//
// This file knows the content of records; ownership_log.h how they get to the store;
// hand_off_rules.h what they permit.
//
// Thread rule: values and pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "transport/host_identity.h"
#include "transport/os/error.h"

namespace pageferry {

// The hand-off counter of one VM: counts on for the VM's life, never restarts.
enum class Epoch : std::uint32_t {};
inline constexpr std::uint32_t kEpochMax = 999'999'999;
constexpr std::uint32_t raw(Epoch epoch) {
  return static_cast<std::uint32_t>(epoch);
}
constexpr Epoch next(Epoch epoch) {
  return Epoch{raw(epoch) + 1};
}

enum class RecordKind : std::uint8_t { owner, running, released, resident, fenced, ended };
inline constexpr std::size_t kRecordKinds = 6;

// "owner", "running", ...: the stable name, first part of the file's name.
std::string_view record_kind_name(RecordKind kind);
// The name of a record's file: "owner.17".
std::string record_file_name(RecordKind kind, Epoch epoch);
struct RecordName {
  RecordKind kind;
  Epoch epoch;
};
// The inverse; nullopt for every other name (leading zeros, beyond kEpochMax and so on included).
std::optional<RecordName> parse_record_file_name(std::string_view name);

// Limits of a record file. A record beyond one is neither written nor believed.
inline constexpr std::size_t kRecordBytesMax = std::size_t{1} << 20;
inline constexpr std::size_t kRecordDisksMax = 256;
inline constexpr std::size_t kDiskPathBytesMax = 1024;
inline constexpr std::size_t kAttemptNameBytesMax = 64;
inline constexpr std::size_t kFencingDetailBytesMax = 512;

// The writer of a record. `claimant` is random, one per tool life and attempt: two records with the
// same claimant were written by the same program run.
struct RecordWriter {
  RandomId claimant;
  HostIdentity host;
  ProcessIdentity tool;
  std::optional<ProcessIdentity>
      vmm;                       // on the same host; required in owner and in running (not in void)
  std::int64_t wall_time_s = 0;  // seconds since 1970, for people only: no rule reads it
  friend bool operator==(const RecordWriter&, const RecordWriter&) = default;
};

// A committed image: the attempt's directory in the VM's directory, and the commit id in its page
// file.
struct ImageRef {
  std::string attempt;
  RandomId commit;
  friend bool operator==(const ImageRef&, const ImageRef&) = default;
};

// A stopped VMM that still holds the guest's whole state in its memory.
struct StoppedVmm {
  HostIdentity host;
  ProcessIdentity process;
  friend bool operator==(const StoppedVmm&, const StoppedVmm&) = default;
};

// A disk file of the guest as it was when its guest stopped.
struct DiskFile {
  std::string path;  // absolute, any bytes but NUL
  std::uint64_t size_bytes = 0;
  std::int64_t mtime_ns = 0;  // nanoseconds since 1970
  friend bool operator==(const DiskFile&, const DiskFile&) = default;
};

// The state of a stopped guest: where it is. Neither image nor memory: it is nowhere, only a reboot
// is possible.
struct GuestState {
  std::optional<ImageRef> image;
  std::optional<StoppedVmm> memory;
  std::vector<DiskFile> disks;  // unchanged since, or the state is stale
  bool exists() const { return image.has_value() || memory.has_value(); }
  friend bool operator==(const GuestState&, const GuestState&) = default;
};

struct OwnerFact {
  friend bool operator==(const OwnerFact&, const OwnerFact&) = default;
};
struct RunningFact {
  enum class Meaning : std::uint8_t {
    runs,   // the owner is about to run the guest: from here on it may have run
    never,  // "void": the owner never ran it and never will
  };
  Meaning meaning = Meaning::runs;
  friend bool operator==(const RunningFact&, const RunningFact&) = default;
};
struct ReleasedFact {
  GuestState state;
  friend bool operator==(const ReleasedFact&, const ReleasedFact&) = default;
};
struct ResidentFact {
  friend bool operator==(const ResidentFact&, const ResidentFact&) = default;
};
enum class FencingMeans : std::uint8_t {
  fence_agent,    // a fence agent reported success
  operator_word,  // --i-have-fenced HOST
  reboot,         // the owner's host was seen in a later boot
};
struct FencedFact {
  RandomId owner_claimant;  // of the owner record that was read before the host was proved off
  FencingMeans means = FencingMeans::operator_word;
  std::string detail;  // for people; may be empty
  friend bool operator==(const FencedFact&, const FencedFact&) = default;
};
struct EndedFact {
  friend bool operator==(const EndedFact&, const EndedFact&) = default;
};

// In the order of RecordKind.
using RecordFact =
    std::variant<OwnerFact, RunningFact, ReleasedFact, ResidentFact, FencedFact, EndedFact>;

struct OwnershipRecord {
  Epoch epoch{0};
  RecordWriter writer;
  RecordFact fact;

  RecordKind kind() const { return static_cast<RecordKind>(fact.index()); }
  std::string file_name() const { return record_file_name(kind(), epoch); }
  friend bool operator==(const OwnershipRecord&, const OwnershipRecord&) = default;
};

// The bytes of the record's file. Errc::invalid when a field breaks its limit.
Result<std::string> encode_record(const OwnershipRecord& record);
// Accepts exactly what encode_record gives, nothing else. Errc::version: made by a newer program;
// Errc::corrupt: anything else that is wrong, the message names field, value and limit.
Result<OwnershipRecord> decode_record(std::string_view bytes);
// The same, and the record must be the one its file name says.
Result<OwnershipRecord> decode_record_file(std::string_view file_name, std::string_view bytes);

}  // namespace pageferry
