// The unit in which people give and read bandwidths and sizes here.
//
// Thread rule: constant.
#pragma once

#include <cstdint>

namespace pageferry {

inline constexpr std::uint64_t kBytesPerMib = std::uint64_t{1} << 20;

}  // namespace pageferry
