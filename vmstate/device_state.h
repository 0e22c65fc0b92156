// QemuState: what a QEMU's migration stream holds besides pages, kept opaque: the configuration
// section, the RAM block list and the device sections, byte for byte, so that they can be replayed
// into another QEMU of the same machine type. Stored as one file ("state");
// docs/device-state-format.md gives every byte.
//
// Thread rule: value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "pager/memory_layout.h"
#include "transport/os/error.h"

namespace pageferry {

// Bounds on what a stream or file may claim.
inline constexpr std::size_t kConfigurationBytesMax = std::size_t{64} << 10;
inline constexpr std::size_t kMachineTypeBytesMax = 255;
inline constexpr std::size_t kDeviceStateBytesMax = std::size_t{256} << 20;
inline constexpr std::size_t kVmdescBytesMax = std::size_t{16} << 20;

struct QemuState {
  std::string machine_type;  // versioned, from the configuration section
  std::vector<std::byte>
      configuration;    // from the type byte 07 up to the next record, subsections included
  MemoryLayout layout;  // RAM blocks in stream order, used lengths
  std::vector<std::byte>
      device_sections;  // every FULL section with its footer; no EOF byte, no vmdesc
  std::string
      vmdesc_json;  // as QEMU described the sections; empty only in old versions (refused earlier)
};

// Bytes of the "state" file, checksummed. Pure. Precondition: the bounds above hold (a captured
// state keeps them).
std::vector<std::byte> encode_qemu_state(const QemuState& state);
// Errc::corrupt (checksum, magic, truncated, length beyond a limit) or Errc::version; the message
// names field, value, limit.
Result<QemuState> decode_qemu_state(std::span<const std::byte> bytes);

}  // namespace pageferry
