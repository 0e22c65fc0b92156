// The file: a header of 48 bytes, 12 bytes for each run, 4 bytes of checksum. docs/touch-record-format.md has every byte.
//
// It belongs to a layout, not to an image: a later image of the same VM has other contents in the same places. What it must not do is
// name pages of another VM, so names and lengths of the blocks are in it as a checksum.
#include "pager/touch_record.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <limits>

#include "transport/crc32c.h"
#include "transport/little_endian.h"

namespace pageferry {
namespace {

constexpr std::array<unsigned char, 8> kMagic{'P', 'F', 'T', 'O', 'U', 'C', 'H', 0};
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kHeaderBytes = 48;
constexpr std::size_t kRunBytes = 12;
constexpr std::size_t kChecksumBytes = 4;
constexpr std::uint64_t kRunPagesMax = std::numeric_limits<std::uint32_t>::max();

std::uint32_t layout_checksum(const MemoryLayout& layout) {
  std::uint32_t crc = 0;
  for (const RamBlock& block : layout.blocks()) {
    std::array<std::byte, 16> numbers{};
    store_le(std::span<std::byte>(numbers), 0, std::uint64_t{block.name.size()});
    store_le(std::span<std::byte>(numbers), 8, block.length_bytes);
    crc = crc32c_extend(crc, numbers);
    crc = crc32c_extend(crc, std::as_bytes(std::span(block.name)));
  }
  return crc;
}

Unexpected refuse(Errc code, std::string_view what) {
  return fail(code, fmt::format("record of first touches: {}", what));
}

// What can be said of the file without reading its runs. Result: their number.
Result<std::uint64_t> check_header(std::span<const std::byte> bytes, const MemoryLayout& layout) {
  if (bytes.size() < kHeaderBytes + kChecksumBytes) {
    return refuse(Errc::corrupt, fmt::format("{} bytes, at least {} are needed", bytes.size(),
                                             kHeaderBytes + kChecksumBytes));
  }
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return refuse(Errc::corrupt, "it does not begin like one");
  }
  const auto version = load_le<std::uint32_t>(bytes, 8);
  if (version != kVersion) {
    return refuse(Errc::version,
                  fmt::format("version {}, this program knows {}", version, kVersion));
  }
  const std::uint64_t runs = load_le<std::uint32_t>(bytes, 12);
  if (runs > kTouchRunsMax) {
    return refuse(Errc::invalid, fmt::format("{} runs, at most {}", runs, kTouchRunsMax));
  }
  const std::uint64_t expected = kHeaderBytes + runs * kRunBytes + kChecksumBytes;
  if (bytes.size() != expected) {
    return refuse(Errc::corrupt, fmt::format("{} bytes, must be {}", bytes.size(), expected));
  }
  const std::size_t checked = bytes.size() - kChecksumBytes;
  if (crc32c(bytes.first(checked)) != load_le<std::uint32_t>(bytes, checked)) {
    return refuse(Errc::corrupt, "its checksum is wrong");
  }
  const auto pages = load_le<std::uint64_t>(bytes, 16);
  const bool same_blocks = load_le<std::uint32_t>(bytes, 24) == layout_checksum(layout);
  if (pages != layout.pages() || !same_blocks) {
    return refuse(Errc::invalid,
                  fmt::format("of {} pages in other RAM blocks, this VM has {} pages", pages,
                              layout.pages()));
  }
  for (std::size_t at = 28; at < kHeaderBytes; ++at) {
    if (bytes[at] != std::byte{0}) {
      return refuse(Errc::invalid, fmt::format("byte {} of its header is not 0", at));
    }
  }
  return runs;
}

}  // namespace

void TouchRecord::note(PageRun run) {
  if (run.pages == 0 || run.pages > kRunPagesMax) return;
  if (!runs_.empty()) {
    PageRun& last = runs_.back();
    if (last.first + last.pages == run.first && last.pages + run.pages <= kRunPagesMax) {
      last.pages += run.pages;
      return;
    }
  }
  if (runs_.size() < kTouchRunsMax) runs_.push_back(run);
}

std::vector<std::byte> TouchRecord::encode(const MemoryLayout& layout) const {
  std::vector<std::byte> bytes(kHeaderBytes + runs_.size() * kRunBytes + kChecksumBytes);
  const std::span<std::byte> all(bytes);
  std::memcpy(bytes.data(), kMagic.data(), kMagic.size());
  store_le(all, 8, kVersion);
  store_le(all, 12, static_cast<std::uint32_t>(runs_.size()));
  store_le(all, 16, layout.pages());
  store_le(all, 24, layout_checksum(layout));
  std::size_t at = kHeaderBytes;
  for (const PageRun& run : runs_) {
    store_le(all, at, raw(run.first));
    store_le(all, at + 8, static_cast<std::uint32_t>(run.pages));
    at += kRunBytes;
  }
  store_le(all, at, crc32c(all.first(at)));
  return bytes;
}

Result<TouchRecord> TouchRecord::decode(std::span<const std::byte> bytes,
                                        const MemoryLayout& layout) {
  PF_ASSIGN(const std::uint64_t runs, check_header(bytes, layout));
  TouchRecord record;
  record.runs_.reserve(runs);
  for (std::uint64_t i = 0; i < runs; ++i) {
    const std::size_t at = kHeaderBytes + i * kRunBytes;
    const auto first = load_le<std::uint64_t>(bytes, at);
    const std::uint64_t pages = load_le<std::uint32_t>(bytes, at + 8);
    if (pages == 0 || pages > layout.pages() || first > layout.pages() - pages) {
      return refuse(Errc::invalid, fmt::format("run {}: {} pages from {} on, the VM has {}", i,
                                               pages, first, layout.pages()));
    }
    record.runs_.push_back({.first = PageIndex{first}, .pages = pages});
  }
  return record;
}

}  // namespace pageferry
