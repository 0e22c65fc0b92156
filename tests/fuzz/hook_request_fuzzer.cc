// decode_request on anything, as a hook gets it from whoever connects. What it takes is in its bounds and encodes to the same bytes.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "vmstate/hook_protocol.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace pageferry::hook_protocol;
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto request = decode_request(bytes);
  if (!request) return 0;
  if (request->slot >= pageferry::kBlocksMax || request->limit_ms > kPauseLimitMsMax ||
      request->state_bytes > kStateBytesMax || request->attempt_id.size() > kAttemptIdBytesMax) {
    std::abort();
  }
  const auto again = encode(*request);
  if (!std::equal(again.begin(), again.end(), bytes.begin(), bytes.end())) std::abort();
  return 0;
}
