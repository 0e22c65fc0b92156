// A header of fixed size with a checksum of its own, so that lengths are believed only then; then the two parts and their checksum.
#include "vmstate/hook_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "transport/crc32c.h"
#include "transport/little_endian.h"
#include "vmstate/hook_protocol.h"

namespace pageferry {
namespace {

using View = std::span<const std::byte>;

constexpr std::size_t kHeaderBytes = 32;
constexpr std::size_t kHeaderCrcOffset = 28;
constexpr std::size_t kCrcBytes = 4;
constexpr std::uint32_t kHookStateVersion = 1;
constexpr std::string_view kMagic("PFHKSTAT", 8);

Unexpected corrupt(std::string_view what) {
  return fail(Errc::corrupt, fmt::format("hook state file: {}", what));
}

}  // namespace

std::vector<std::byte> encode_hook_state(std::string_view machine, View state) {
  std::vector<std::byte> out(kHeaderBytes + machine.size() + state.size() + kCrcBytes);
  const std::span<std::byte> bytes(out);
  const auto magic = std::as_bytes(std::span(kMagic));
  std::copy(magic.begin(), magic.end(), out.begin());
  store_le(bytes, 8, kHookStateVersion);
  store_le(bytes, 12, static_cast<std::uint32_t>(machine.size()));
  store_le(bytes, 16, std::uint64_t{state.size()});
  store_le(bytes, kHeaderCrcOffset, crc32c(bytes.first(kHeaderCrcOffset)));
  const auto text = std::as_bytes(std::span(machine));
  const std::span<std::byte> body = bytes.subspan(kHeaderBytes, machine.size() + state.size());
  const auto behind_text = std::copy(text.begin(), text.end(), body.begin());
  std::copy(state.begin(), state.end(), behind_text);
  store_le(bytes, kHeaderBytes + body.size(), crc32c(body));
  return out;
}

Result<HookDeviceState> decode_hook_state(View bytes) {
  if (bytes.size() < kHeaderBytes + kCrcBytes) {
    return corrupt(fmt::format("{} bytes, at least {}", bytes.size(), kHeaderBytes + kCrcBytes));
  }
  const auto magic = std::as_bytes(std::span(kMagic));
  if (!std::equal(magic.begin(), magic.end(), bytes.begin())) return corrupt("wrong magic");
  const auto version = load_le<std::uint32_t>(bytes, 8);
  if (version != kHookStateVersion) {
    return fail(Errc::version, fmt::format("hook state file: version {}, known is {}", version,
                                           kHookStateVersion));
  }
  if (load_le<std::uint32_t>(bytes, kHeaderCrcOffset) != crc32c(bytes.first(kHeaderCrcOffset))) {
    return corrupt("wrong checksum of the header");
  }
  const auto machine_bytes = load_le<std::uint32_t>(bytes, 12);
  const auto state_bytes = load_le<std::uint64_t>(bytes, 16);
  if (machine_bytes == 0 || machine_bytes > hook_protocol::kMachineBytesMax) {
    return corrupt(fmt::format("machine text of {} bytes, limit {}", machine_bytes,
                               hook_protocol::kMachineBytesMax));
  }
  if (state_bytes > hook_protocol::kStateBytesMax) {
    return corrupt(
        fmt::format("state of {} bytes, limit {}", state_bytes, hook_protocol::kStateBytesMax));
  }
  if (load_le<std::uint32_t>(bytes, 24) != 0) return corrupt("bytes 24 to 27 are not zero");
  if (bytes.size() != kHeaderBytes + machine_bytes + state_bytes + kCrcBytes) {
    return corrupt(fmt::format("{} bytes, its header says {}", bytes.size(),
                               kHeaderBytes + machine_bytes + state_bytes + kCrcBytes));
  }
  const View body = bytes.subspan(kHeaderBytes, machine_bytes + state_bytes);
  if (load_le<std::uint32_t>(bytes, bytes.size() - kCrcBytes) != crc32c(body)) {
    return corrupt("wrong checksum");
  }
  HookDeviceState read;
  const View machine = body.first(machine_bytes);
  const View state = body.subspan(machine_bytes);
  read.machine.assign(reinterpret_cast<const char*>(machine.data()), machine.size());
  read.state.assign(state.begin(), state.end());
  return read;
}

}  // namespace pageferry
