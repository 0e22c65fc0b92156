// Any bytes into the decoder of ownership records: it refuses them, or they are exactly what the encoder writes. The
// checksum is repaired first in half of the runs, else the fuzzer would never get past it.
#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "transport/crc32c.h"
#include "transport/ownership_record.h"

namespace {

void check(const std::string& bytes) {
  const auto record = pageferry::decode_record(bytes);
  if (!record) return;
  const auto again = pageferry::encode_record(*record);
  PF_CHECK(again && *again == bytes);
  PF_CHECK(pageferry::parse_record_file_name(record->file_name()).has_value());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  check(bytes);
  const std::size_t last = bytes.rfind("crc32c ");
  const std::string body = bytes.substr(0, last);
  check(fmt::format("{}crc32c {:08x}\n", body,
                    pageferry::crc32c(std::as_bytes(std::span(body.data(), body.size())))));
  static_cast<void>(pageferry::parse_record_file_name(bytes));
  return 0;
}
