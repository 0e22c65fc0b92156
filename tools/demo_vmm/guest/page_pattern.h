// What a page of the demo guest holds: a function of (seed, address, version). Three header words (address, version, checksum of the rest)
// and 509 words of an incompressible generator, so that a page in the wrong place, of the wrong age, torn or with one flipped bit is told
// from the right one, and told apart. Version 0 is a page of zeros.
//
// Written and verified by the guest itself; shares no code with the pager, whose work it judges.
//
// Thread rule: pure, on the caller's page. No host library.
#pragma once

#include "tools/demo_vmm/guest/guest_format.h"

namespace pageferry::demo {

inline constexpr std::uint64_t kHeaderWords = 3;

constexpr std::uint64_t mixed(std::uint64_t x) {  // the finalizer of splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

constexpr std::uint64_t page_seed(std::uint64_t seed, std::uint64_t address,
                                  std::uint64_t version) {
  return mixed(seed ^ mixed(address ^ mixed(version)));
}

constexpr std::uint32_t entry_check(std::uint64_t seed, std::uint64_t address,
                                    std::uint32_t version) {
  return static_cast<std::uint32_t>(mixed(~seed ^ mixed(address + version)));
}

// One step of the generator: one multiplication.
constexpr std::uint64_t next_state(std::uint64_t x) {
  return x * 6364136223846793005ULL + 1442695040888963407ULL;
}
constexpr std::uint64_t word_of(std::uint64_t x) {
  return x ^ (x >> 32);
}

inline void write_pattern(std::uint64_t* page, std::uint64_t seed, std::uint64_t address,
                          std::uint32_t version) {
  std::uint64_t x = page_seed(seed, address, version);
  std::uint64_t sum = 0;
  for (std::uint64_t i = kHeaderWords; i < kGuestPageWords; ++i) {
    x = next_state(x);
    const std::uint64_t word = word_of(x);
    page[i] = word;
    sum += word;
  }
  page[0] = address;
  page[1] = version;
  page[2] = sum;
}

inline bool is_zero(const std::uint64_t* page) {
  std::uint64_t all = 0;
  for (std::uint64_t i = 0; i < kGuestPageWords; ++i) all |= page[i];
  return all == 0;
}

// Every word is the one of `version`.
inline bool is_pattern(const std::uint64_t* page, std::uint64_t seed, std::uint64_t address,
                       std::uint32_t version) {
  std::uint64_t x = page_seed(seed, address, version);
  std::uint64_t sum = 0;
  std::uint64_t wrong = (page[0] ^ address) | (page[1] ^ version);
  for (std::uint64_t i = kHeaderWords; i < kGuestPageWords; ++i) {
    x = next_state(x);
    const std::uint64_t word = word_of(x);
    wrong |= page[i] ^ word;
    sum += word;
  }
  return (wrong | (page[2] ^ sum)) == 0;
}

// What is the matter with the page that should hold `version`; none: nothing.
inline BadKind judge(const std::uint64_t* page, std::uint64_t seed, std::uint64_t address,
                     std::uint32_t version) {
  if (version == 0) {
    if (is_zero(page)) return BadKind::none;
    return BadKind::not_zero;
  }
  if (is_pattern(page, seed, address, version)) return BadKind::none;
  const bool is_whole =
      is_zero(page) || is_pattern(page, seed, address, static_cast<std::uint32_t>(page[1]));
  return is_whole ? BadKind::stale : BadKind::content;
}

}  // namespace pageferry::demo
