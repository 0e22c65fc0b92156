// Big-endian integers, as QEMU's migration stream and return path carry them: appended to a byte
// vector, read from a span. Knows no record. Thread rule: pure functions.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace pageferry {

using ByteBuffer = std::vector<std::byte>;

// Appends `value`, most significant byte first, in sizeof(T) bytes: the type says the width on the
// wire.
template <std::unsigned_integral T>
void put_be(ByteBuffer& out, T value) {
  for (unsigned shift = sizeof(T) * 8; shift > 0; shift -= 8) {
    out.push_back(static_cast<std::byte>(static_cast<std::uint64_t>(value) >> (shift - 8)));
  }
}

// Precondition: bytes.size() >= sizeof(T).
template <std::unsigned_integral T>
T get_be(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    value = (value << 8) | std::to_integer<std::uint64_t>(bytes[i]);
  }
  return static_cast<T>(value);
}

inline void put_bytes(ByteBuffer& out, std::span<const std::byte> bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

// u8 length, then the characters: how the stream spells names. Precondition: text.size() <= 255.
inline void put_counted_string(ByteBuffer& out, std::string_view text) {
  put_be(out, static_cast<std::uint8_t>(text.size()));
  put_bytes(out, std::as_bytes(std::span(text.data(), text.size())));
}

}  // namespace pageferry
