// The fields that payloads of the hook's protocol are made of, one after the other: for its codec only.
//
// Thread rule: one thread. Lifetime: a FieldReader reads from bytes that outlive it.
#pragma once

#include <fmt/format.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "transport/little_endian.h"
#include "transport/os/error.h"

namespace pageferry::hook_protocol {

class FieldWriter {
 public:
  template <std::unsigned_integral T>
  void put(T value) {
    bytes_.resize(bytes_.size() + sizeof value);
    store_le(std::span(bytes_), bytes_.size() - sizeof value, value);
  }
  void put_text(std::string_view text) {
    put(static_cast<std::uint32_t>(text.size()));
    const auto from = std::as_bytes(std::span(text));
    bytes_.insert(bytes_.end(), from.begin(), from.end());
  }
  std::vector<std::byte> take() { return std::move(bytes_); }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

// Reads past the end give zeros and are remembered: end() says so.
class FieldReader {
 public:
  explicit FieldReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <std::unsigned_integral T>
  T take() {
    if (bytes_.size() - at_ < sizeof(T)) {
      short_ = true;
      at_ = bytes_.size();
      return 0;
    }
    const T value = load_le<T>(bytes_, at_);
    at_ += sizeof(T);
    return value;
  }
  std::string take_text() {
    const auto length = take<std::uint32_t>();
    if (bytes_.size() - at_ < length) {
      short_ = true;
      at_ = bytes_.size();
      return {};
    }
    const std::string text(reinterpret_cast<const char*>(bytes_.data() + at_), length);
    at_ += length;
    return text;
  }
  std::size_t left() const { return bytes_.size() - at_; }
  // Everything was there, and nothing is left.
  Result<void> end(std::string_view what) const {
    if (!short_ && left() == 0) return {};
    return fail(Errc::invalid,
                fmt::format("{}: a payload of {} bytes is {}", what, bytes_.size(),
                            short_ ? "too short" : fmt::format("{} too long", left())));
  }

 private:
  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
  bool short_ = false;
};

// The type may be none of Type's.
struct PacketHeader {
  std::uint16_t type = 0;
  std::uint32_t serial = 0;
};
std::vector<std::byte> make_packet(PacketHeader header, std::span<const std::byte> payload);
struct Packet {
  PacketHeader header;
  std::span<const std::byte> payload;
};
Result<Packet> open_packet(std::span<const std::byte> packet);

}  // namespace pageferry::hook_protocol
