// DeviceStateTail: what follows the END of RAM in a migration stream. Device sections have no
// length, and what is inside is known to QEMU's device code alone; so the end is found from the
// back, by QEMU's own description (vmdesc), which the stream ends with:
//
//   | device sections ...            | 00 | 06 | u32 length | {JSON of that length} |
//     kept opaque, byte for byte       EOF  VMDESC
//
// and the description is then used to walk the sections: each device it lists must begin where the
// one before ended.
//
// Thread rule: one thread.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "transport/os/error.h"

namespace pageferry::qemu_stream {

class DeviceStateTail {
 public:
  // Keeps `bytes`; returns true when with them the tail is complete. Errors: invalid (longer than
  // the limits, or sections and description contradict each other).
  Result<bool> append(std::span<const std::byte> bytes);

  // Valid once append() returned true.
  std::vector<std::byte> take_device_sections() { return std::move(sections_); }
  std::string take_vmdesc() { return std::move(vmdesc_); }

 private:
  std::vector<std::byte> sections_;  // until complete: everything
  std::string vmdesc_;
};

// Walks `sections` along the `devices` array of `vmdesc_json`: each must be a FULL section of that
// name and instance, ended by its footer, with nothing before, between or behind. Errc::invalid
// names the device at which they part.
Result<void> check_device_sections(std::span<const std::byte> sections,
                                   const std::string& vmdesc_json);

// The run state in which QEMU stopped the guest ("running": it ran until then), from the section
// "globalstate", which every machine type of today writes. Empty when there is none.
std::string captured_run_state(std::span<const std::byte> sections);

}  // namespace pageferry::qemu_stream
