// Fuzzes the state file's decoder: no bytes crash it, and what it takes it writes again the same. Checksums would stop nearly every
// input at the door, so the two of them are made right first.
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "transport/crc32c.h"
#include "vmstate/device_state.h"

namespace {

using namespace pageferry;

constexpr std::size_t kHeaderBytes = 64;
constexpr std::size_t kCrcBytes = 4;

void put_crc(std::vector<std::byte>& bytes, std::size_t at, std::uint32_t crc) {
  for (std::size_t i = 0; i < kCrcBytes; ++i)
    bytes[at + i] = static_cast<std::byte>(crc >> (8 * i));
}

void make_checksums_right(std::vector<std::byte>& bytes) {
  if (bytes.size() < kHeaderBytes + kCrcBytes) return;
  put_crc(bytes, kHeaderBytes - kCrcBytes,
          crc32c(std::span(bytes).first(kHeaderBytes - kCrcBytes)));
  const auto body = std::span(bytes).subspan(kHeaderBytes, bytes.size() - kHeaderBytes - kCrcBytes);
  put_crc(bytes, bytes.size() - kCrcBytes, crc32c(body));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto given = std::as_bytes(std::span(data, size));
  std::vector<std::byte> bytes(given.begin(), given.end());
  static_cast<void>(decode_qemu_state(bytes));
  make_checksums_right(bytes);
  const auto state = decode_qemu_state(bytes);
  if (!state) return 0;
  const auto again = decode_qemu_state(encode_qemu_state(*state));
  if (!again || again->machine_type != state->machine_type ||
      again->configuration != state->configuration || !(again->layout == state->layout) ||
      again->device_sections != state->device_sections ||
      again->vmdesc_json != state->vmdesc_json) {
    std::abort();
  }
  return 0;
}
