// decode_manifest on anything. The first line of the input gets a right checksum, or nothing behind the checksum would ever be reached;
// the input as it is goes in too. What is accepted must be written again and read back as the same text.
#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include "transport/crc32c.h"
#include "vmstate/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  [[maybe_unused]] const auto raw = pageferry::decode_manifest(text);
  const std::string line = text.substr(0, text.find('\n')) + "\n";
  const auto decoded = pageferry::decode_manifest(
      fmt::format("{}crc32c {:08x}\n", line, pageferry::crc32c(std::as_bytes(std::span(line)))));
  if (!decoded) return 0;
  const auto written = pageferry::encode_manifest(*decoded);
  if (!written) std::abort();
  const auto again = pageferry::decode_manifest(*written);
  if (!again || pageferry::encode_manifest(*again).value() != *written) std::abort();
  return 0;
}
