// What each page of the memory of the tests' Firecracker guest holds, so that its maker and the guest agree without asking anybody.
//
// Every 16th page is zero but stored; of 512 pages 64 are a hole; every other has words that say which page and which word it is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace memory_pattern {

inline constexpr std::size_t kPageBytes = 4096;
inline constexpr std::size_t kWords = kPageBytes / sizeof(std::uint64_t);
using Page = std::array<std::uint64_t, kWords>;

enum class Kind : std::uint8_t { content, zero, hole };

inline Kind kind_of(std::uint64_t page) {
  if (page / 64 % 8 == 5) return Kind::hole;
  return page % 16 == 3 ? Kind::zero : Kind::content;
}

// Never zero.
inline std::uint64_t word_of(std::uint64_t page, std::uint64_t word) {
  std::uint64_t mixed = (page * kWords + word + 1) * 0x9e3779b97f4a7c15ULL;
  mixed ^= mixed >> 29;
  mixed *= 0xbf58476d1ce4e5b9ULL;
  return (mixed ^ (mixed >> 32)) | 1;
}

inline Page page_of(std::uint64_t page) {
  Page words{};
  if (kind_of(page) != Kind::content) return words;
  for (std::size_t i = 0; i < kWords; ++i) words[i] = word_of(page, i);
  return words;
}

}  // namespace memory_pattern
