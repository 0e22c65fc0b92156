// crc32c (Castagnoli, reflected polynomial 0x82f63b78) as in RFC 3720 appendix B.4: initial value and final xor
// 0xffffffff. Done by ISA-L, which picks the fastest code of the processor at run time (12 GB/s a core where there is
// carry-less multiplication) and has a table version for the rest.
//
// Thread rule: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace pageferry {

std::uint32_t crc32c(std::span<const std::byte> bytes);
// Continues: crc32c_extend(crc32c(a), b) == crc32c(a followed by b).
std::uint32_t crc32c_extend(std::uint32_t crc, std::span<const std::byte> bytes);

}  // namespace pageferry
