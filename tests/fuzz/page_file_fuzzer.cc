// The decoders of the page file against arbitrary bytes. Checksums would keep nearly everything out, so the input's own are
// put right first: what is tested is what stands behind them. Beside not crashing: what decodes must encode to the same
// bytes, so that no byte of a file goes unlooked at.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "pager/page_file_format.h"
#include "transport/crc32c.h"
#include "transport/little_endian.h"

namespace pageferry {
namespace {

constexpr std::size_t kVersionAt = 8;
constexpr std::size_t kCrcAt = 12;      // header and commit record
constexpr std::size_t kBlockCrcAt = 4;  // map and delta blocks
constexpr std::size_t kFileIdAt = 16;

using Block = std::array<std::byte, kFileBlockBytes>;

Id128 id_in(const Block& block) {
  Id128 id;
  std::copy_n(block.begin() + kFileIdAt, id.size(), id.begin());
  return id;
}

// A header for a guest of 1024 pages, to decode the other parts against.
PageFileHeader plausible_header() {
  RamBlock ram;
  ram.name = "pc.ram";
  ram.length_bytes = bytes_of_pages(1024);
  Result<MemoryLayout> layout = MemoryLayout::make({ram});
  PF_CHECK(layout.has_value());
  return plan_page_file(Id128{}, *layout, 0);
}

void try_header(Block block) {
  store_le<std::uint32_t>(block, kCrcAt, page_file_block_crc(id_in(block), block, kCrcAt));
  const Result<PageFileHeader> header = decode_header(block);
  if (!header) return;
  Block again{};
  encode_header(*header, again);
  PF_CHECK(again == block);
}

void try_commit(Block block) {
  store_le<std::uint32_t>(block, kCrcAt, page_file_block_crc(id_in(block), block, kCrcAt));
  PageFileHeader header = plausible_header();
  header.file_id = id_in(block);
  if (load_le<std::uint32_t>(block, kVersionAt) != kPageFileVersion) header.bases.resize(1);
  const Result<CommitRecord> record = decode_commit(header, block);
  if (!record) return;
  Block again{};
  encode_commit(*record, again);
  PF_CHECK(again == block);
}

void try_layout(std::span<const std::byte> bytes) {
  PageFileHeader header = plausible_header();
  header.layout_bytes = static_cast<std::uint32_t>(bytes.size());
  header.layout_crc = crc32c(bytes);
  if (!bytes.empty()) header.ram_blocks = static_cast<std::uint32_t>(bytes[0]) % 4 + 1;
  const Result<MemoryLayout> layout = decode_layout(header, bytes);
  if (!layout) return;
  const std::vector<std::byte> again = encode_layout(*layout);
  PF_CHECK(std::equal(again.begin(), again.end(), bytes.begin(), bytes.end()));
}

void try_delta(Block block) {
  PageFileHeader header = plausible_header();
  header.bases.push_back({Id128{}, header.slots_offset + bytes_of_pages(1)});
  store_le<std::uint32_t>(block, kBlockCrcAt,
                          page_file_block_crc(header.file_id, block, kBlockCrcAt));
  const Result<DeltaBlock> delta = decode_delta_block(header, 0, block);
  if (!delta) return;
  CommitRecord record;
  record.file_bytes = header.slots_offset;
  for (const DeltaEntry& entry : delta->entries) {
    PF_CHECK(raw(entry.page) < header.pages);
    if (!check_entry(header, record, entry.page, entry.entry)) continue;
    PF_CHECK(entry.entry.base() <= header.bases.size());
    PF_CHECK(entry.entry.base() == 0 || !entry.entry.is_zero());
  }
}

void try_map(Block block) {
  const Id128 id{};
  store_le<std::uint32_t>(block, kBlockCrcAt, page_file_block_crc(id, block, kBlockCrcAt));
  if (!open_map_block(id, 0, block)) return;
  Block again = block;
  seal_map_block(id, 0, again);
  PF_CHECK(again == block);
}

}  // namespace
}  // namespace pageferry

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace pageferry;
  if (size == 0) return 0;
  const std::span<const std::byte> input(reinterpret_cast<const std::byte*>(data + 1), size - 1);
  Block block{};
  std::copy_n(input.begin(), std::min(input.size(), block.size()), block.begin());
  switch (data[0] % 5) {
    case 0:
      try_header(block);
      break;
    case 1:
      try_commit(block);
      break;
    case 2:
      try_layout(input);
      break;
    case 3:
      try_delta(block);
      break;
    default:
      try_map(block);
      break;
  }
  return 0;
}
