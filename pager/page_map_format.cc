// Map blocks, delta blocks and their entries. A checksum covers its whole block with the checksum
// field read as zero, and begins with the file's id, so that a block left over from another file on
// the same disk blocks is not taken for one of this file.
#include <fmt/format.h>

#include <algorithm>

#include "pager/page_file_format.h"
#include "transport/crc32c.h"
#include "transport/little_endian.h"

namespace pageferry {
namespace {

constexpr std::uint32_t kMapMagic = 0x314d4650;    // "PFM1"
constexpr std::uint32_t kDeltaMagic = 0x31444650;  // "PFD1"
// Map and delta block: magic, checksum, number; the delta block's number is 4 bytes, then its entry
// count.
constexpr std::size_t kBlockCrcAt = 4;
constexpr std::size_t kBlockNumberAt = 8;
constexpr std::size_t kDeltaCountAt = 12;
// Map entry; in a delta entry after the page's number.
constexpr std::size_t kEntryVersionAt = 8;
constexpr std::size_t kEntryCrcAt = 12;
constexpr std::size_t kDeltaMapEntryAt = 8;

}  // namespace

std::uint32_t page_file_block_crc(const Id128& file_id, ConstFileBlock block, std::size_t crc_at) {
  static constexpr std::array<std::byte, sizeof(std::uint32_t)> kNone{};
  std::uint32_t crc = crc32c(file_id);
  crc = crc32c_extend(crc, block.first(crc_at));
  crc = crc32c_extend(crc, kNone);
  return crc32c_extend(crc, block.subspan(crc_at + kNone.size()));
}

Unexpected page_file_corrupt(std::string what) {
  return fail(Errc::corrupt, "page file: " + std::move(what));
}

std::uint32_t seal_map_block(const Id128& file_id, std::uint64_t number, FileBlock block) {
  store_le<std::uint32_t>(block, 0, kMapMagic);
  store_le<std::uint64_t>(block, kBlockNumberAt, number);
  const std::uint32_t crc = page_file_block_crc(file_id, block, kBlockCrcAt);
  store_le<std::uint32_t>(block, kBlockCrcAt, crc);
  return crc;
}

Result<std::uint32_t> open_map_block(const Id128& file_id, std::uint64_t number,
                                     ConstFileBlock block) {
  const auto stored = load_le<std::uint32_t>(block, kBlockCrcAt);
  const std::uint32_t computed = page_file_block_crc(file_id, block, kBlockCrcAt);
  if (load_le<std::uint32_t>(block, 0) != kMapMagic || stored != computed) {
    return page_file_corrupt(fmt::format(
        "map block {} checksum is {:#010x}, its bytes give {:#010x}", number, stored, computed));
  }
  if (const auto is = load_le<std::uint64_t>(block, kBlockNumberAt); is != number) {
    return page_file_corrupt(fmt::format("map block {} is where block {} should be", is, number));
  }
  return computed;
}

MapEntry load_map_entry(ConstFileBlock block, std::size_t index) {
  const auto at = block.subspan(kMapBlockHeaderBytes + index * kMapEntryBytes, kMapEntryBytes);
  return {load_le<std::uint64_t>(at, 0), load_le<std::uint32_t>(at, kEntryVersionAt),
          load_le<std::uint32_t>(at, kEntryCrcAt)};
}

void store_map_entry(FileBlock block, std::size_t index, const MapEntry& entry) {
  const auto at = block.subspan(kMapBlockHeaderBytes + index * kMapEntryBytes, kMapEntryBytes);
  store_le<std::uint64_t>(at, 0, entry.location);
  store_le<std::uint32_t>(at, kEntryVersionAt, entry.version);
  store_le<std::uint32_t>(at, kEntryCrcAt, entry.crc);
}

std::uint32_t encode_delta_block(const Id128& file_id, std::uint32_t number,
                                 std::span<const DeltaEntry> entries, FileBlock to) {
  PF_CHECK(entries.size() <= kDeltaEntriesPerBlock);
  std::fill(to.begin(), to.end(), std::byte{0});
  store_le<std::uint32_t>(to, 0, kDeltaMagic);
  store_le<std::uint32_t>(to, kBlockNumberAt, number);
  store_le<std::uint32_t>(to, kDeltaCountAt, static_cast<std::uint32_t>(entries.size()));
  std::size_t at = kMapBlockHeaderBytes;
  for (const DeltaEntry& delta : entries) {
    store_le<std::uint64_t>(to, at, raw(delta.page));
    store_le<std::uint64_t>(to, at + kDeltaMapEntryAt, delta.entry.location);
    store_le<std::uint32_t>(to, at + kDeltaMapEntryAt + kEntryVersionAt, delta.entry.version);
    store_le<std::uint32_t>(to, at + kDeltaMapEntryAt + kEntryCrcAt, delta.entry.crc);
    at += kDeltaEntryBytes;
  }
  const std::uint32_t crc = page_file_block_crc(file_id, to, kBlockCrcAt);
  store_le<std::uint32_t>(to, kBlockCrcAt, crc);
  return crc;
}

Result<DeltaBlock> decode_delta_block(const PageFileHeader& header, std::uint32_t number,
                                      ConstFileBlock from) {
  DeltaBlock block;
  const auto stored = load_le<std::uint32_t>(from, kBlockCrcAt);
  block.crc = page_file_block_crc(header.file_id, from, kBlockCrcAt);
  if (load_le<std::uint32_t>(from, 0) != kDeltaMagic || stored != block.crc) {
    return page_file_corrupt(fmt::format(
        "delta block {} checksum is {:#010x}, its bytes give {:#010x}", number, stored, block.crc));
  }
  if (const auto is = load_le<std::uint32_t>(from, kBlockNumberAt); is != number) {
    return page_file_corrupt(fmt::format("delta block {} is where block {} should be", is, number));
  }
  const auto count = load_le<std::uint32_t>(from, kDeltaCountAt);
  if (count == 0 || count > kDeltaEntriesPerBlock) {
    return page_file_corrupt(fmt::format("delta block {} has {} entries, limit 1..{}", number,
                                         count, kDeltaEntriesPerBlock));
  }
  block.entries.reserve(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto at = from.subspan(kMapBlockHeaderBytes + i * kDeltaEntryBytes, kDeltaEntryBytes);
    const auto page = load_le<std::uint64_t>(at, 0);
    const bool ascends = block.entries.empty() || page > raw(block.entries.back().page);
    if (page >= header.pages || !ascends) {
      return page_file_corrupt(
          fmt::format("delta block {} entry {}: page {} is out of order or beyond {}", number, i,
                      page, header.pages));
    }
    block.entries.push_back({PageIndex{page},
                             {load_le<std::uint64_t>(at, kDeltaMapEntryAt),
                              load_le<std::uint32_t>(at, kDeltaMapEntryAt + kEntryVersionAt),
                              load_le<std::uint32_t>(at, kDeltaMapEntryAt + kEntryCrcAt)}});
  }
  return block;
}

Result<void> check_entry(const PageFileHeader& header, const CommitRecord& record, PageIndex page,
                         const MapEntry& entry) {
  if (entry_is_sound(header, record, entry)) return {};
  if (entry.base() != 0) {
    const bool known = entry.base() <= header.bases.size();
    return page_file_corrupt(
        fmt::format("page {} has location {:#x} and version {} in base {} of {}: blocks {}..{} of "
                    "it, version 0",
                    raw(page), entry.location, entry.version, entry.base(), header.bases.size(),
                    header.tail_offset / kFileBlockBytes,
                    known ? header.bases[entry.base() - 1].file_bytes / kFileBlockBytes : 0));
  }
  const std::uint64_t block = entry.block();
  const std::uint64_t first = header.tail_offset / kFileBlockBytes;
  const std::uint64_t end = record.file_bytes / kFileBlockBytes;
  const bool placed = block >= first && block < end;
  if (!(placed || (block == 0 && entry.is_zero()))) {
    return page_file_corrupt(fmt::format("page {} is said to be in block {}, limit {}..{}",
                                         raw(page), block, first, end));
  }
  return page_file_corrupt(fmt::format("page {} has version {}, limit 1..{}", raw(page),
                                       entry.version, record.version_max));
}

std::uint32_t chain_crc(std::uint32_t chain, std::uint32_t block_crc) {
  std::array<std::byte, sizeof block_crc> bytes;
  store_le<std::uint32_t>(bytes, 0, block_crc);
  return crc32c_extend(chain, bytes);
}

}  // namespace pageferry
