// ISA-L's crc32_iscsi takes and returns the raw register, so the RFC's two inversions are done here. Its length is an
// int: longer input goes in pieces.
#include "transport/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace pageferry {

std::uint32_t crc32c(std::span<const std::byte> bytes) {
  return crc32c_extend(0, bytes);
}

std::uint32_t crc32c_extend(std::uint32_t crc, std::span<const std::byte> bytes) {
  constexpr std::size_t kPieceBytesMax = std::size_t{1} << 30;
  std::uint32_t state = ~crc;
  while (!bytes.empty()) {
    const std::size_t piece = std::min(bytes.size(), kPieceBytesMax);
    // The library's parameter is not const but it only reads.
    auto* data = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data()));
    state = crc32_iscsi(data, static_cast<int>(piece), state);
    bytes = bytes.subspan(piece);
  }
  return ~state;
}

}  // namespace pageferry
