// decode_memory_map on anything, as manifest_fuzzer does it: with a right checksum, and as it is.
#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include "transport/crc32c.h"
#include "vmstate/qemu_memory_map.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  [[maybe_unused]] const auto raw = pageferry::decode_memory_map(text);
  const std::string line = text.substr(0, text.find('\n')) + "\n";
  const auto decoded = pageferry::decode_memory_map(
      fmt::format("{}crc32c {:08x}\n", line, pageferry::crc32c(std::as_bytes(std::span(line)))));
  if (!decoded) return 0;
  const auto written = pageferry::encode_memory_map(*decoded);
  if (!written) std::abort();
  const auto again = pageferry::decode_memory_map(*written);
  if (!again || pageferry::encode_memory_map(*again).value() != *written) std::abort();
  return 0;
}
