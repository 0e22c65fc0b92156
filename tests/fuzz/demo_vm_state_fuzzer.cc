// Fuzzes the decoder of the demo VMM's state: no bytes crash it, and what it takes it writes again the same. Length and checksum would
// stop nearly every input at the door, so they are made right first.
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "tools/demo_vmm/vm_state.h"
#include "transport/crc32c.h"
#include "transport/little_endian.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace pageferry;
  constexpr std::size_t kLengthAt = 12;
  constexpr std::size_t kCrcBytes = 4;
  const auto given = std::as_bytes(std::span(data, size));
  std::vector<std::byte> bytes(given.begin(), given.end());
  static_cast<void>(demo::decode_vm_state(bytes));
  if (size < kLengthAt + 2 * kCrcBytes) return 0;
  store_le(std::span(bytes), kLengthAt, static_cast<std::uint32_t>(size));
  store_le(std::span(bytes), size - kCrcBytes,
           crc32c(std::span<const std::byte>(bytes).first(size - kCrcBytes)));
  const auto state = demo::decode_vm_state(bytes);
  if (state && demo::encode_vm_state(*state) != bytes) std::abort();
  return 0;
}
