// The bare guest's image: the bytes that guest_main.cc was built to. To be copied to kCodeAddress, which is also where vCPUs begin.
//
// Thread rule: constant.
#pragma once

#include <cstddef>
#include <span>

namespace pageferry::demo {

std::span<const std::byte> guest_image();

}  // namespace pageferry::demo
