// FirecrackerRegions: where the memory of a Firecracker guest is and what it has to hold, as Firecracker tells the handler of its page
// faults when it restores a snapshot with the memory backend `Uffd`: a JSON array with an object for each region.
//
//   base_host_virt_addr   where the region begins in Firecracker's address space
//   size                  its bytes
//   offset                where its content begins in the memory file
//   page_size             bytes of the pages that back it: 4096, or 2 MiB (hugetlbfs)
//   page_size_kib         the same, also in bytes; older, deprecated. One of the two must be there, and they must agree
//
// Other members are left alone: newer versions may say more. Nothing else of it is trusted: an address that is wrong puts pages in the
// wrong place, an offset the wrong pages.
//
// Thread rule: values and pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page.h"
#include "transport/os/error.h"

namespace pageferry {

inline constexpr std::size_t kFirecrackerRegionsMax = 256;
inline constexpr std::size_t kFirecrackerMessageBytesMax = std::size_t{128} << 10;

struct FirecrackerRegions {
  MemoryLayout layout{};                   // one block for each region, named "region N"
  std::vector<std::uint64_t> addresses{};  // of each block, in Firecracker's address space
  std::vector<PageIndex> source_pages{};   // the page of the memory source where each begins
  friend bool operator==(const FirecrackerRegions&, const FirecrackerRegions&) = default;
};

// How much of a message is there, as far as its brackets tell. A stream socket says nothing of where one ends.
enum class MessageExtent : std::uint8_t {
  partial,   // a beginning
  whole,     // up to its last bracket, whatever is in between
  no_array,  // it will never be one
};
MessageExtent extent_of_regions_message(std::string_view text);

// `source_pages`: how many pages the memory source has. Errors: invalid (the message names region, member, value and limit).
Result<FirecrackerRegions> decode_firecracker_regions(std::string_view text,
                                                      std::uint64_t source_pages);

}  // namespace pageferry
