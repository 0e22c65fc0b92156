// Numbers the pages of all blocks in one row and checks what a stream or file claims about them.
#include "pager/memory_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

namespace pageferry {
namespace {

Result<void> check_block(const RamBlock& block) {
  if (block.name.empty() || block.name.size() > kBlockNameBytesMax) {
    return fail(Errc::invalid, fmt::format("RAM block name has {} bytes, limit 1..{}",
                                           block.name.size(), kBlockNameBytesMax));
  }
  if (block.length_bytes == 0 || !is_page_aligned(block.length_bytes) ||
      block.length_bytes > kMemoryBytesMax) {
    return fail(Errc::invalid,
                fmt::format("RAM block '{}': length {} is not a multiple of {} in 1..{}",
                            block.name, block.length_bytes, kPageSizeBytes, kMemoryBytesMax));
  }
  if (!std::has_single_bit(block.backing_page_bytes) || block.backing_page_bytes < kPageSizeBytes ||
      block.backing_page_bytes > kBackingPageBytesMax ||
      block.length_bytes % block.backing_page_bytes != 0) {
    return fail(Errc::invalid,
                fmt::format("RAM block '{}': backing page size {} does not fit length {}",
                            block.name, block.backing_page_bytes, block.length_bytes));
  }
  return {};
}

}  // namespace

Result<MemoryLayout> MemoryLayout::make(std::vector<RamBlock> blocks) {
  if (blocks.empty() || blocks.size() > kBlocksMax) {
    return fail(Errc::invalid,
                fmt::format("{} RAM blocks, limit 1..{}", blocks.size(), kBlocksMax));
  }
  MemoryLayout layout;
  for (RamBlock& block : blocks) {
    PF_TRY(check_block(block));
    block.first_page = PageIndex{layout.pages_};
    layout.pages_ += block.pages();
    if (layout.bytes() > kMemoryBytesMax) {
      return fail(Errc::invalid,
                  fmt::format("RAM blocks add up to more than {} bytes at block '{}'",
                              kMemoryBytesMax, block.name));
    }
    if (layout.find_block(block.name)) {
      return fail(Errc::invalid, fmt::format("RAM block '{}' is named twice", block.name));
    }
    layout.blocks_.push_back(std::move(block));
  }
  return layout;
}

std::optional<std::size_t> MemoryLayout::find_block(std::string_view name) const {
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    if (blocks_[i].name == name) return i;
  }
  return std::nullopt;
}

bool MemoryLayout::has_large_pages() const {
  return std::any_of(blocks_.begin(), blocks_.end(), [](const RamBlock& block) {
    return block.backing_page_bytes != kPageSizeBytes;
  });
}

Result<void> MemoryLayout::check_same_blocks(const MemoryLayout& other) const {
  const bool same = std::equal(blocks_.begin(), blocks_.end(), other.blocks_.begin(),
                               other.blocks_.end(), [](const RamBlock& a, const RamBlock& b) {
                                 return a.name == b.name && a.length_bytes == b.length_bytes;
                               });
  if (same) return {};
  return fail(Errc::invalid,
              fmt::format("{} RAM blocks with {} pages are not the {} with {} of the destination",
                          other.blocks_.size(), other.pages_, blocks_.size(), pages_));
}

std::size_t MemoryLayout::block_of(PageIndex page) const {
  PF_CHECK(raw(page) < pages_);
  const auto after = std::upper_bound(
      blocks_.begin(), blocks_.end(), page,
      [](PageIndex value, const RamBlock& block) { return value < block.first_page; });
  return static_cast<std::size_t>(after - blocks_.begin()) - 1;
}

}  // namespace pageferry
