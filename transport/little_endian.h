// Little-endian fields in byte buffers: what every file format of ours is made of.
//
// Thread rule: pure functions. Precondition of each: offset + sizeof(T) <= bytes.size(); checked, aborts.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstring>
#include <span>

#include "transport/os/error.h"

namespace pageferry {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "add byte swaps before a big-endian port");

template <std::unsigned_integral T>
T load_le(std::span<const std::byte> bytes, std::size_t offset) {
  PF_CHECK(offset + sizeof(T) <= bytes.size());
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

template <std::unsigned_integral T>
void store_le(std::span<std::byte> bytes, std::size_t offset, T value) {
  PF_CHECK(offset + sizeof(T) <= bytes.size());
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

}  // namespace pageferry
