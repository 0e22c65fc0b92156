// VmManifest: what a destination needs to know to start a VMM that can take the guest, written by
// the source at the start of an attempt into its directory, as "manifest.json".
// docs/manifest-format.md gives every member; decoding is strict.
//
// Thread rule: value; pure functions.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pager/memory_layout.h"
#include "transport/os/error.h"
#include "vmstate/qemu_process.h"

namespace pageferry {

inline constexpr std::uint32_t kManifestVersion = 1;
inline constexpr std::size_t kManifestBytesMax = std::size_t{16} << 20;
inline constexpr std::string_view kManifestFileName = "manifest.json";

enum class GuestRunState : std::uint8_t { running, paused };

// Of a VMM with a hook (docs/vmm-hook.md).
struct HookMachine {
  std::string machine;                         // the VMM's own words; a destination's are equal
  std::string socket;                          // of the source's hook, on the source's host
  std::vector<std::string> incoming_command;   // {socket} stands for the path; may be empty
  std::vector<std::uint64_t> guest_addresses;  // of each block
  friend bool operator==(const HookMachine&, const HookMachine&) = default;
};

// A page file of an earlier move that this attempt's page file leaves pages in (docs/page-file-format.md).
struct ManifestBase {
  std::string file;  // its name in the attempt's directory
  std::uint64_t file_bytes = 0;
  friend bool operator==(const ManifestBase&, const ManifestBase&) = default;
};

struct VmManifest {
  std::string vm_name;     // 1 to 255 bytes
  std::string vm_uuid;     // as QEMU prints it; all zeros when it was given none
  std::string attempt_id;  // 1 to 64 letters, digits, dashes
  std::uint64_t epoch = 0;
  std::string source_host;
  std::string source_boot_id;
  VmmProcess source;
  std::optional<HookMachine> hook;  // else it is a QEMU, and the three below count
  std::uint32_t qemu_version = 0;   // major * 10000 + minor * 100 + micro
  std::string machine_type;         // versioned
  nlohmann::json machine;           // describe_machine(); an object
  GuestRunState run_state = GuestRunState::running;
  std::uint32_t page_bytes = 0;  // of the guest; kPageSizeBytes
  std::vector<RamBlock>
      blocks;  // in stream order; first_page is not stored. May be empty (not known yet).
  std::vector<ManifestBase> bases{};
};

// Text: one JSON object on one line, then a line "crc32c XXXXXXXX" over the first line with its
// newline. invalid if a member breaks the bounds that the decoder checks.
Result<std::string> encode_manifest(const VmManifest& manifest);
// corrupt (checksum, truncated, no JSON), version, invalid (a member is missing, unknown, of the
// wrong type or beyond its limit): the message names member, value and limit.
Result<VmManifest> decode_manifest(std::string_view text);

}  // namespace pageferry
