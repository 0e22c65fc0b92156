// MemoryLayout: the RAM blocks (memory slots) of one VM, in the order the VMM names them, and the
// one row of page indexes over them. Knows no contents and no VMM.
//
// Thread rule: immutable after make(); freely shared.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pager/page.h"
#include "transport/os/error.h"

namespace pageferry {

// Bounds on what a file or peer may claim.
inline constexpr std::size_t kBlocksMax = 1024;
inline constexpr std::size_t kBlockNameBytesMax = 255;  // QEMU's idstr has one length byte
inline constexpr std::uint64_t kMemoryBytesMax = std::uint64_t{1} << 46;  // 64 TiB of guest memory
inline constexpr std::uint64_t kBackingPageBytesMax = std::uint64_t{1} << 30;  // 1 GiB hugetlb

struct RamBlock {
  std::string name;                // the VMM's id string; unique
  std::uint64_t length_bytes = 0;  // a multiple of kPageSizeBytes and > 0
  std::uint64_t backing_page_bytes =
      kPageSizeBytes;      // of the VMM that runs it: 4096 or a hugetlb size
  PageIndex first_page{};  // filled in by MemoryLayout::make
  std::uint64_t pages() const { return pages_of_bytes(length_bytes); }
  friend bool operator==(const RamBlock&, const RamBlock&) = default;
};

class MemoryLayout {
 public:
  MemoryLayout() = default;

  // Checks every bound above, names, alignment and duplicates (Errc::invalid names the block), and
  // numbers the pages. `first_page` of the input is ignored.
  static Result<MemoryLayout> make(std::vector<RamBlock> blocks);

  const std::vector<RamBlock>& blocks() const { return blocks_; }
  std::uint64_t pages() const { return pages_; }
  std::uint64_t bytes() const { return bytes_of_pages(pages_); }

  // Index into blocks(), or nullopt.
  std::optional<std::size_t> find_block(std::string_view name) const;
  // Index of the block that holds `page`. Precondition: raw(page) < pages(). O(log blocks).
  std::size_t block_of(PageIndex page) const;

  // Names and lengths are equal, in order, whatever pages back them; else Errc::invalid with both sides' numbers.
  Result<void> check_same_blocks(const MemoryLayout& other) const;

  // Whether a block is backed by pages larger than a page.
  bool has_large_pages() const;

  friend bool operator==(const MemoryLayout&, const MemoryLayout&) = default;

 private:
  std::vector<RamBlock> blocks_;
  std::uint64_t pages_ = 0;
};

}  // namespace pageferry
