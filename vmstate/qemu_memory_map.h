// QemuMemoryMap: the RAM blocks of one destination QEMU, in which way its pages get there, and how to get in: where the blocks are in its
// address space, or which connection was left for commands (qemu_out_of_band.h). Kept in the QEMU's run directory for the whole of a
// restore, for a pager that comes after a dead one: QEMU says the same only through its monitor, and the monitor may wait for a page that
// only a pager can bring (docs/failure-model.md, "The pager dies").
//
// A text of checked_json.h; docs/memory-map-format.md has every member. It is no record: who may run the guest does not depend on it.
//
// Thread rule: value; pure functions but for those that say that they use a file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pager/memory_layout.h"
#include "transport/host_identity.h"
#include "transport/os/error.h"
#include "vmstate/qemu_placement.h"

namespace pageferry {

inline constexpr std::uint32_t kMemoryMapVersion = 1;
inline constexpr std::size_t kMemoryMapBytesMax = std::size_t{1} << 20;
inline constexpr const char* kMemoryMapFileName = "memory-map.json";

struct QemuMemoryMap {
  ProcessIdentity process;                          // with its start time: never a later process
  PagePlacement placement = PagePlacement::stream;  // direct or stream
  int qemu_version = 0;                             // major * 10000 + minor * 100 + micro
  // Where stream: the inode of our end of the out-of-band connection; 0: none was left.
  std::uint64_t out_of_band_inode = 0;
  MemoryLayout layout{};  // QEMU's: with its backing pages
  // Where direct: of each block of the layout, in QEMU's address space; else empty.
  std::vector<std::uint64_t> block_addresses{};
  friend bool operator==(const QemuMemoryMap&, const QemuMemoryMap&) = default;
};

// invalid: what decode would refuse, or a block name that is not UTF-8.
Result<std::string> encode_memory_map(const QemuMemoryMap& map);
// Errors: corrupt (checksum, truncated, no JSON), version, invalid (the message names member, value and limit).
Result<QemuMemoryMap> decode_memory_map(std::string_view text);

// Uses the file in that run directory. Errors: those of encode_memory_map and write_run_file.
Result<void> write_memory_map(const std::string& run_directory, const QemuMemoryMap& map);
// Errors: not_found, those of decode_memory_map and read_run_file; the message names the file.
Result<QemuMemoryMap> read_memory_map(const std::string& run_directory);

}  // namespace pageferry
