// Guests for tests: layouts, and page contents that say which page and which version they are, so
// that a page in the wrong place or of the wrong age is noticed.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page.h"

namespace pageferry::testing_support {

// Of hugetlb pages, as backing pages are.
inline constexpr std::uint64_t kHugeBytes = std::uint64_t{2} << 20;
inline constexpr std::uint64_t kPagesPerHuge = kHugeBytes / kPageSizeBytes;

inline constexpr PageIndex kFirstPage{0};

inline PageRun run(std::uint64_t first, std::uint64_t pages) {
  return {.first = PageIndex{first}, .pages = pages};
}

using PageArray = std::array<std::byte, kPageSizeBytes>;

// Never zero; differs for every (page, age).
inline PageArray content_of(std::uint64_t page, std::uint64_t age) {
  PageArray bytes;
  std::uint64_t state = (page + 1) * 0x9e3779b97f4a7c15ULL ^ (age + 1) * 0xc2b2ae3d27d4eb4fULL;
  for (std::size_t at = 0; at < bytes.size(); at += sizeof state) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    std::memcpy(bytes.data() + at, &state, sizeof state);
  }
  std::memcpy(bytes.data(), &page, sizeof page);
  std::memcpy(bytes.data() + sizeof page, &age, sizeof age);
  bytes.back() = std::byte{1};
  return bytes;
}

// Of several pages, one after the other.
inline std::vector<std::byte> contents_of(std::uint64_t first, std::uint64_t pages,
                                          std::uint64_t age = 1) {
  std::vector<std::byte> bytes;
  for (std::uint64_t page = first; page < first + pages; ++page) {
    const PageArray one = content_of(page, age);
    bytes.insert(bytes.end(), one.begin(), one.end());
  }
  return bytes;
}

inline MemoryLayout layout_of_blocks(std::vector<RamBlock> blocks) {
  const Result<MemoryLayout> layout = MemoryLayout::make(std::move(blocks));
  PF_CHECK(layout.has_value());
  return *layout;
}

inline MemoryLayout layout_of(const std::vector<std::pair<std::string, std::uint64_t>>& blocks) {
  std::vector<RamBlock> list;
  for (const auto& [name, pages] : blocks) {
    RamBlock block;
    block.name = name;
    block.length_bytes = bytes_of_pages(pages);
    list.push_back(block);
  }
  return layout_of_blocks(std::move(list));
}

}  // namespace pageferry::testing_support
