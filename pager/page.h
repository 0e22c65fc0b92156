// Pages, page indexes and runs of pages: the only place that converts between bytes and pages.
//
// A page here is always the 4 KiB target page that dirty tracking, checksums and the page file
// count in; a backing page (2 MiB hugetlb, say) is a whole number of them. A PageIndex numbers the
// pages of all RAM blocks of one VM in one row: block 0 first, then block 1, ... (MemoryLayout says
// where each begins), so a bitmap or map over it needs no block.
//
// Thread rule: values.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>

namespace pageferry {

inline constexpr unsigned kPageShift = 12;
inline constexpr std::size_t kPageSizeBytes = std::size_t{1} << kPageShift;

// Where the addresses of any process end, on x86-64 with five levels of page tables.
inline constexpr std::uint64_t kAddressEnd = std::uint64_t{1} << 57;

// Number of a page in the row of all pages of a VM.
enum class PageIndex : std::uint64_t {};

constexpr std::uint64_t raw(PageIndex page) {
  return static_cast<std::uint64_t>(page);
}
constexpr PageIndex operator+(PageIndex page, std::uint64_t pages) {
  return PageIndex{raw(page) + pages};
}
constexpr std::uint64_t operator-(PageIndex a, PageIndex b) {
  return raw(a) - raw(b);
}

constexpr std::uint64_t bytes_of_pages(std::uint64_t pages) {
  return pages << kPageShift;
}
// Precondition: bytes is a multiple of the page size.
constexpr std::uint64_t pages_of_bytes(std::uint64_t bytes) {
  return bytes >> kPageShift;
}
constexpr bool is_page_aligned(std::uint64_t bytes) {
  return (bytes & (kPageSizeBytes - 1)) == 0;
}

// `pages` pages from `first`.
struct PageRun {
  PageIndex first{};
  std::uint64_t pages = 0;
  friend bool operator==(const PageRun&, const PageRun&) = default;
};

using PageBytes = std::span<const std::byte, kPageSizeBytes>;

// True when all bytes are zero. Speed matters (it sees every page of a guest): vectorised by the
// compiler.
bool is_zero_page(PageBytes page);

}  // namespace pageferry
