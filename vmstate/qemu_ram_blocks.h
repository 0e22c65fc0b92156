// The RAM blocks of a running QEMU as its monitor prints them (`info ramblock`): the only place
// where QEMU says which page size backs each block, which a postcopy source has to know.
//
// Thread rule: pure functions, except query_ram_blocks, which uses the QmpClient.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pager/memory_layout.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/qmp_client.h"

namespace pageferry {

struct QemuRamBlock {
  std::string name;
  std::uint64_t page_bytes = 0;
  std::uint64_t used_bytes = 0;
  std::uint64_t total_bytes = 0;                // it may be resized up to this
  std::optional<std::uint64_t> host_address{};  // in QEMU's address space; 8.2 and later say it
  friend bool operator==(const QemuRamBlock&, const QemuRamBlock&) = default;
};

// Errc::vmm when the text is not the known table; the message shows the line.
Result<std::vector<QemuRamBlock>> parse_ram_blocks(std::string_view text);
Result<std::vector<QemuRamBlock>> query_ram_blocks(QmpClient& qmp, Deadline deadline);

// The block of that name, or nullptr. Lifetime: as `blocks`.
const QemuRamBlock* find_ram_block(const std::vector<QemuRamBlock>& blocks, std::string_view name);

// `captured` with the page sizes that back the same blocks at a destination. Errc::invalid names a
// block that the destination lacks or whose size does not fit.
Result<MemoryLayout> layout_at_destination(const MemoryLayout& captured,
                                           const std::vector<QemuRamBlock>& destination);

}  // namespace pageferry
