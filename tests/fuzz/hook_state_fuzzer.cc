// Fuzzes the decoder of the hook's state file: no bytes crash it, and what it takes it writes again the same. The two checksums would
// stop nearly every input at the door, so they are made right first.
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "transport/crc32c.h"
#include "transport/little_endian.h"
#include "vmstate/hook_state.h"

namespace {

using namespace pageferry;

constexpr std::size_t kHeaderBytes = 32;
constexpr std::size_t kCrcBytes = 4;

void make_checksums_right(std::span<std::byte> bytes) {
  if (bytes.size() < kHeaderBytes + kCrcBytes) return;
  const std::size_t header_crc_at = kHeaderBytes - kCrcBytes;
  store_le(bytes, header_crc_at, crc32c(bytes.first(header_crc_at)));
  const std::size_t body_bytes = bytes.size() - kHeaderBytes - kCrcBytes;
  store_le(bytes, bytes.size() - kCrcBytes, crc32c(bytes.subspan(kHeaderBytes, body_bytes)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto given = std::as_bytes(std::span(data, size));
  std::vector<std::byte> bytes(given.begin(), given.end());
  static_cast<void>(decode_hook_state(bytes));
  make_checksums_right(bytes);
  const auto state = decode_hook_state(bytes);
  if (state && encode_hook_state(state->machine, state->state) != bytes) std::abort();
  return 0;
}
