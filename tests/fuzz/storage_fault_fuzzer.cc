// The grammar of storage faults against arbitrary text.
#include <cstdint>
#include <string_view>

#include "transport/faulty_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto faults =
      pageferry::parse_storage_faults(std::string_view(reinterpret_cast<const char*>(data), size));
  if (faults) PF_CHECK(!faults->empty() && faults->size() <= pageferry::kStorageFaultsMax);
  return 0;
}
