// Page file, versions 1 and 2: constants, fields and the conversions between fields and bytes. Every
// byte is described in docs/page-file-format.md. Pure: knows no file and does no I/O.
//
//   block 0      header   what the file is and where its parts are; written before any page, and again by use_base()
//   block 1      commit   zeros until the file is complete and durable; then written, once
//   block 2 ...  layout   the RAM blocks
//                map      one 16-byte entry for each page, 255 to a block
//                tail     what was dirty when the guest was stopped; after it the index: checksums
//                         of all map blocks, and the delta (map entries that changed since their
//                         map block was written)
//                slots    every other page, in the order in which pages were first stored; behind
//                         them what did not fit into the tail
//
// Decoding never trusts: magic, version, checksum and every bound are checked before a field is
// used. Errc::version for another version, Errc::corrupt for everything else; the message names the
// field, its value and the limit.
//
// Thread rule: pure functions and values.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page.h"
#include "transport/os/error.h"

namespace pageferry {

inline constexpr std::uint32_t kPageFileVersion = 1;
inline constexpr std::uint32_t kPageFileVersionWithBases = 2;
inline constexpr std::size_t kBasesMax = 15;  // of one file
// The file is addressed in blocks of one page.
inline constexpr std::size_t kFileBlockBytes = kPageSizeBytes;
inline constexpr std::uint64_t kHeaderOffset = 0;
inline constexpr std::uint64_t kCommitOffset = kFileBlockBytes;
inline constexpr std::uint64_t kLayoutOffset = 2 * kFileBlockBytes;
// Map, tail and slots begin at multiples of this, so that large writes stay aligned.
inline constexpr std::uint64_t kSectionAlignmentBytes = std::uint64_t{1} << 20;

inline constexpr std::size_t kMapEntryBytes = 16;
inline constexpr std::size_t kMapEntriesPerBlock = 255;
inline constexpr std::size_t kDeltaEntryBytes = 24;
inline constexpr std::size_t kDeltaEntriesPerBlock = 170;
inline constexpr std::size_t kMapBlockHeaderBytes = 16;
inline constexpr std::size_t kMapChecksumsPerBlock = kFileBlockBytes / sizeof(std::uint32_t);
static_assert(kMapBlockHeaderBytes + kMapEntriesPerBlock * kMapEntryBytes == kFileBlockBytes);
static_assert(kMapBlockHeaderBytes + kDeltaEntriesPerBlock * kDeltaEntryBytes == kFileBlockBytes);

using FileBlock = std::span<std::byte, kFileBlockBytes>;
using ConstFileBlock = std::span<const std::byte, kFileBlockBytes>;
using Id128 = std::array<std::byte, 16>;

// 32 lower-case hex digits.
std::string to_hex(const Id128& id);

// A committed page file that another one leaves pages in.
struct PageFileBase {
  Id128 commit_id{};
  std::uint64_t file_bytes = 0;  // as its commit record says: no page lies beyond

  // Its name beside the file that needs it.
  std::string file_name() const;
  friend bool operator==(const PageFileBase&, const PageFileBase&) = default;
};

inline constexpr std::size_t kBaseFileNameBytes = 37;
bool is_base_file_name(std::string_view name);

struct PageFileHeader {
  Id128 file_id{};  // random; every checksum of this file's blocks begins with it
  std::uint64_t pages = 0;
  std::uint32_t ram_blocks = 0;
  std::uint32_t layout_bytes = 0;  // at kLayoutOffset, padded with zeros to a block
  std::uint32_t layout_crc = 0;
  std::uint64_t map_offset = 0;  // bytes from the start of the file, as all offsets
  std::uint64_t tail_offset = 0;
  std::uint64_t tail_bytes = 0;  // reserved for the tail; may be 0
  std::uint64_t slots_offset = 0;
  std::vector<PageFileBase> bases{};  // number 1 first

  std::uint32_t format_version() const {
    return bases.empty() ? kPageFileVersion : kPageFileVersionWithBases;
  }
  std::uint64_t map_blocks() const {
    return (pages + kMapEntriesPerBlock - 1) / kMapEntriesPerBlock;
  }
  // Blocks that the checksums of the map blocks take.
  std::uint64_t map_checksum_blocks() const {
    return (map_blocks() + kMapChecksumsPerBlock - 1) / kMapChecksumsPerBlock;
  }
  friend bool operator==(const PageFileHeader&, const PageFileHeader&) = default;
};

struct CommitRecord {
  std::uint32_t format_version = kPageFileVersion;  // as the header's
  Id128 file_id{};
  Id128 commit_id{};                       // random; names this image in records outside
  std::uint64_t file_bytes = 0;            // the file is at least this long
  std::uint64_t stored_pages = 0;          // pages with content, wherever it lies
  std::uint64_t tail_pages = 0;            // of them, stored while the guest was stopped
  std::uint64_t slots = 0;                 // slots handed out
  std::uint64_t map_checksums_offset = 0;  // the checksums of all map blocks, 4 bytes each
  std::uint64_t delta_offset = 0;          // right behind them; 0 when there is no delta
  std::uint64_t delta_entries = 0;
  // Over the checksums of all map blocks, in order: a map block that was never written, or is an old
  // one, is noticed. The same for delta blocks.
  std::uint32_t map_crc = 0;
  std::uint32_t delta_crc = 0;
  std::uint32_t version_max = 0;  // highest version of a page: that of the blackout pass
  std::uint64_t base_pages = 0;   // of the stored pages, in bases
  std::uint64_t delta_blocks() const {
    return (delta_entries + kDeltaEntriesPerBlock - 1) / kDeltaEntriesPerBlock;
  }
  friend bool operator==(const CommitRecord&, const CommitRecord&) = default;
};

// Where a page is. location: file block number, 0 when it has none; kLocationZero is added when the
// content is zero (the rest then names the slot that stays reserved for it, or 0). The number of a base
// is added when the block is one of that file.
inline constexpr std::uint64_t kLocationZero = std::uint64_t{1} << 63;
inline constexpr unsigned kLocationBaseShift = 56;
inline constexpr std::uint64_t kLocationBaseMask = std::uint64_t{kBasesMax} << kLocationBaseShift;
static_assert((kBasesMax & (kBasesMax + 1)) == 0);  // a mask
struct MapEntry {
  std::uint64_t location = 0;
  std::uint32_t version = 0;  // 0: never stored here: zero, or in a base
  std::uint32_t crc = 0;      // crc32c of the content; 0 for zero pages

  bool is_zero() const { return location == 0 || (location & kLocationZero) != 0; }
  std::uint64_t block() const { return location & ~(kLocationZero | kLocationBaseMask); }
  // 0: this file.
  std::size_t base() const { return (location & kLocationBaseMask) >> kLocationBaseShift; }
  friend bool operator==(const MapEntry&, const MapEntry&) = default;
};

// Neighbouring map blocks, by number.
struct MapBlockRun {
  std::uint64_t first = 0;
  std::uint64_t blocks = 0;
  friend bool operator==(const MapBlockRun&, const MapBlockRun&) = default;
};

struct DeltaEntry {
  PageIndex page{};
  MapEntry entry;
  friend bool operator==(const DeltaEntry&, const DeltaEntry&) = default;
};

// Where the parts of a file for this layout begin. tail_bytes is rounded up to
// kSectionAlignmentBytes.
PageFileHeader plan_page_file(const Id128& file_id, const MemoryLayout& layout,
                              std::uint64_t tail_bytes);

void encode_header(const PageFileHeader& header, FileBlock to);
Result<PageFileHeader> decode_header(ConstFileBlock from);

std::vector<std::byte> encode_layout(const MemoryLayout& layout);  // layout_bytes, not padded
Result<MemoryLayout> decode_layout(const PageFileHeader& header, std::span<const std::byte> from);

void encode_commit(const CommitRecord& record, FileBlock to);
// Errc::corrupt with "not committed" when the block is zero. Checks the fields against the header.
Result<CommitRecord> decode_commit(const PageFileHeader& header, ConstFileBlock from);

// Fills in the header of a map block whose entries are in place; returns its checksum.
std::uint32_t seal_map_block(const Id128& file_id, std::uint64_t number, FileBlock block);
// Checks it; returns its checksum. Entries are checked by check_entry when they are used.
Result<std::uint32_t> open_map_block(const Id128& file_id, std::uint64_t number,
                                     ConstFileBlock block);
MapEntry load_map_entry(ConstFileBlock block, std::size_t index);
void store_map_entry(FileBlock block, std::size_t index, const MapEntry& entry);

// entries: at most kDeltaEntriesPerBlock, ascending by page. Returns the checksum.
std::uint32_t encode_delta_block(const Id128& file_id, std::uint32_t number,
                                 std::span<const DeltaEntry> entries, FileBlock to);
struct DeltaBlock {
  std::uint32_t crc = 0;
  std::vector<DeltaEntry> entries;
};
Result<DeltaBlock> decode_delta_block(const PageFileHeader& header, std::uint32_t number,
                                      ConstFileBlock from);

// The same for an entry that names a base. All files of one guest have the same layout, so that their
// pages begin at the same offset.
inline bool base_entry_is_sound(const PageFileHeader& header, const MapEntry& entry) {
  return !entry.is_zero() && entry.base() <= header.bases.size() && entry.version == 0 &&
         entry.block() >= header.tail_offset / kFileBlockBytes &&
         entry.block() < header.bases[entry.base() - 1].file_bytes / kFileBlockBytes;
}
// An entry points to a block of the tail or the slots, inside the committed size, and has a version
// that was given out.
inline bool entry_is_sound(const PageFileHeader& header, const CommitRecord& record,
                           const MapEntry& entry) {
  if (entry.base() != 0) return base_entry_is_sound(header, entry);
  const std::uint64_t block = entry.block();
  const bool placed =
      block >= header.tail_offset / kFileBlockBytes && block < record.file_bytes / kFileBlockBytes;
  return (placed || (block == 0 && entry.is_zero())) && entry.version <= record.version_max &&
         (entry.version != 0 || entry.location == 0);
}
// The same as an error that says what is wrong.
Result<void> check_entry(const PageFileHeader& header, const CommitRecord& record, PageIndex page,
                         const MapEntry& entry);

// crc32c of the file's id, then of the block with four zero bytes at crc_at.
std::uint32_t page_file_block_crc(const Id128& file_id, ConstFileBlock block, std::size_t crc_at);
// Errc::corrupt, "page file: <what>".
Unexpected page_file_corrupt(std::string what);
// Continues the checksum over checksums.
std::uint32_t chain_crc(std::uint32_t chain, std::uint32_t block_crc);

}  // namespace pageferry
