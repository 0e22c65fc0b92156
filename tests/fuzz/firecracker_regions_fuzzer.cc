// decode_firecracker_regions on anything. What it takes is safe to place pages by: aligned, inside the source, apart; and the same when
// the memory source is larger.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "vmstate/firecracker_regions.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void check(const pageferry::FirecrackerRegions& regions, std::uint64_t source_pages) {
  const auto& blocks = regions.layout.blocks();
  require(!blocks.empty() && blocks.size() == regions.addresses.size() &&
          blocks.size() == regions.source_pages.size());
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    require(regions.addresses[i] % blocks[i].backing_page_bytes == 0);
    require(regions.addresses[i] + blocks[i].length_bytes > regions.addresses[i]);
    require(pageferry::raw(regions.source_pages[i]) + blocks[i].pages() <= source_pages);
    for (std::size_t j = 0; j < i; ++j) {
      require(regions.addresses[i] + blocks[i].length_bytes <= regions.addresses[j] ||
              regions.addresses[j] + blocks[j].length_bytes <= regions.addresses[i]);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::uint64_t kSourcePages = 4096;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto decoded = pageferry::decode_firecracker_regions(text, kSourcePages);
  const pageferry::MessageExtent extent = pageferry::extent_of_regions_message(text);
  if (!decoded) return 0;
  check(*decoded, kSourcePages);
  require(extent != pageferry::MessageExtent::partial);
  const auto again = pageferry::decode_firecracker_regions(text, 2 * kSourcePages);
  require(again && *again == *decoded);
  return 0;
}
