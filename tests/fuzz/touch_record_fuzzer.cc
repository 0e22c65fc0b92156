// Fuzzes the decoder of records of first touches: no bytes crash it, and what it takes it writes again the same. A checksum would stop
// nearly every input at the door, so it is made right first.
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "pager/touch_record.h"
#include "transport/crc32c.h"
#include "transport/little_endian.h"

namespace {

using namespace pageferry;

const MemoryLayout& layout() {
  static const MemoryLayout two_blocks =
      MemoryLayout::make({RamBlock{.name = "ram", .length_bytes = bytes_of_pages(1000)},
                          RamBlock{.name = "rom", .length_bytes = bytes_of_pages(24)}})
          .value();
  return two_blocks;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto given = std::as_bytes(std::span(data, size));
  std::vector<std::byte> bytes(given.begin(), given.end());
  static_cast<void>(TouchRecord::decode(bytes, layout()));
  if (bytes.size() < sizeof(std::uint32_t)) return 0;
  const std::size_t checked = bytes.size() - sizeof(std::uint32_t);
  store_le(std::span<std::byte>(bytes), checked, crc32c(std::span(bytes).first(checked)));
  const auto record = TouchRecord::decode(bytes, layout());
  if (record && record->encode(layout()) != bytes) std::abort();
  return 0;
}
