// Header, commit record, layout, then the index (checksums of the map blocks, delta), then the map blocks that are not in
// hand yet, then the delta's entries; each is checked before the next is looked for. A block that is valid but old is found
// by its checksum, which is not the committed one.
#include "pager/page_file_image.h"

#include <fmt/format.h>

#include <algorithm>

#include "pager/page_file_pieces.h"
#include "transport/crc32c.h"
#include "transport/little_endian.h"

namespace pageferry {
namespace {

using Bytes = std::span<const std::byte>;

std::uint32_t committed_crc(Bytes checksums, std::uint64_t number) {
  return load_le<std::uint32_t>(checksums, number * sizeof(std::uint32_t));
}

// The committed checksums of the map blocks.
Result<void> check_checksums(const PageFileImage& image, Bytes checksums) {
  const std::size_t used = image.header.map_blocks() * sizeof(std::uint32_t);
  const std::uint32_t computed = crc32c(checksums.first(used));
  if (computed == image.record.map_crc) return {};
  return page_file_corrupt(
      fmt::format("map checksums have checksum {:#010x}, committed was {:#010x}", computed,
                  image.record.map_crc));
}

// What could not be judged before the commit record was there.
Result<void> check_bounds(const PageFileImage& image, std::uint64_t number,
                          const MapBlockFacts& facts) {
  if (facts.version_max <= image.record.version_max &&
      facts.location_end <= image.record.file_bytes / kFileBlockBytes) {
    return {};
  }
  const ConstFileBlock block = image.map.block(number);
  const std::uint64_t first = number * kMapEntriesPerBlock;
  for (std::uint64_t i = 0; i < kMapEntriesPerBlock; ++i) {
    PF_TRY(check_entry(image.header, image.record, PageIndex{first + i}, load_map_entry(block, i)));
  }
  return {};
}

// One map block as it was just read.
Result<MapBlockFacts> check_map_block(const PageFileImage& image, Bytes checksums,
                                      std::uint64_t number) {
  PF_ASSIGN(const MapBlockFacts facts,
            examine_map_block(image.header, number, image.map.block(number)));
  PF_TRY(check_bounds(image, number, facts));
  const std::uint32_t committed = committed_crc(checksums, number);
  if (facts.crc == committed) return facts;
  return page_file_corrupt(
      fmt::format("map block {} is valid but not the one that was committed: checksum {:#010x}, "
                  "committed {:#010x}",
                  number, facts.crc, committed));
}

// The map blocks that are not in hand as they were committed, in pieces of neighbours.
std::vector<FilePiece> missing_pieces(PageFileImage& image, std::span<const MapBlockFacts> facts,
                                      Bytes checksums) {
  const auto in_hand = [&](std::uint64_t number) {
    return facts[number].sound && facts[number].crc == committed_crc(checksums, number);
  };
  std::vector<FilePiece> pieces;
  std::uint64_t first = 0;
  while (first < facts.size()) {
    if (in_hand(first)) {
      ++first;
      continue;
    }
    std::uint64_t end = first + 1;
    while (end < facts.size() && !in_hand(end)) ++end;
    const std::span<std::byte> bytes =
        image.map.bytes().subspan(first * kFileBlockBytes, (end - first) * kFileBlockBytes);
    const auto more = pieces_of(image.header.map_offset + first * kFileBlockBytes, bytes);
    pieces.insert(pieces.end(), more.begin(), more.end());
    first = end;
  }
  return pieces;
}

// What the map says, to be compared with the commit record.
struct MapCounts {
  std::uint64_t stored = 0;    // pages with content
  std::uint64_t in_bases = 0;  // of them

  void add(const MapEntry& entry) {
    stored += entry.is_zero() ? 0U : 1U;
    in_bases += entry.base() != 0 ? 1U : 0U;
  }
  void remove(const MapEntry& entry) {
    stored -= entry.is_zero() ? 0U : 1U;
    in_bases -= entry.base() != 0 ? 1U : 0U;
  }
};

// Completes the map.
Result<MapCounts> load_map(StorageFile& file, const WaitBounds& bounds, PageFileImage& image,
                           std::span<MapBlockFacts> facts, Bytes checksums) {
  const std::vector<FilePiece> pieces = missing_pieces(image, facts, checksums);
  PF_TRY(read_pieces(file, pieces, bounds, [&](const FilePiece& piece) -> Result<void> {
    const std::uint64_t first = (piece.offset - image.header.map_offset) / kFileBlockBytes;
    const std::uint64_t end = first + piece.bytes.size() / kFileBlockBytes;
    for (std::uint64_t number = first; number < end; ++number) {
      PF_ASSIGN(facts[number], check_map_block(image, checksums, number));
    }
    return {};
  }));
  MapCounts counts;
  for (std::uint64_t number = 0; number < facts.size(); ++number) {
    // A preloaded block meets the commit record here for the first time.
    PF_TRY(check_bounds(image, number, facts[number]));
    counts.stored += facts[number].stored;
    counts.in_bases += facts[number].in_bases;
  }
  return counts;
}

bool in_tail(const PageFileHeader& header, const MapEntry& entry) {
  return !entry.is_zero() && entry.base() == 0 &&
         entry.block() < header.slots_offset / kFileBlockBytes;
}

// Puts the delta into the map; returns the counts as they are afterwards.
Result<MapCounts> apply_delta(PageFileImage& image, Bytes delta, MapCounts counts) {
  std::uint32_t chain = 0;
  std::uint64_t entries = 0;
  std::uint64_t next_page = 0;
  for (std::uint32_t number = 0; number < image.record.delta_blocks(); ++number) {
    const ConstFileBlock raw_block(delta.data() + number * kFileBlockBytes, kFileBlockBytes);
    const Result<DeltaBlock> block = decode_delta_block(image.header, number, raw_block);
    if (!block) return tl::make_unexpected(block.error());
    chain = chain_crc(chain, block->crc);
    entries += block->entries.size();
    if (raw(block->entries.front().page) < next_page) {
      return page_file_corrupt(fmt::format("delta block {} is out of order", number));
    }
    next_page = raw(block->entries.back().page) + 1;
    for (const DeltaEntry& change : block->entries) {
      PF_TRY(check_entry(image.header, image.record, change.page, change.entry));
      counts.remove(image.map.get(change.page));
      counts.add(change.entry);
      image.map.set(change.page, change.entry);
      if (in_tail(image.header, change.entry)) image.tail_pages.push_back(change.page);
    }
  }
  if (chain == image.record.delta_crc && entries == image.record.delta_entries) return counts;
  return page_file_corrupt(
      fmt::format("delta has {} entries with checksum {:#010x}, committed were {} with {:#010x}",
                  entries, chain, image.record.delta_entries, image.record.delta_crc));
}

// The whole map, as it was committed.
Result<void> load_index(StorageFile& file, const WaitBounds& bounds, PageFileImage& image,
                        std::span<MapBlockFacts> facts) {
  const std::size_t checksums_bytes = image.header.map_checksum_blocks() * kFileBlockBytes;
  const std::size_t index_bytes = checksums_bytes + image.record.delta_blocks() * kFileBlockBytes;
  PF_ASSIGN(const AlignedMemory memory,
            read_section(file, image.record.map_checksums_offset, index_bytes, bounds));
  const Bytes index(memory.data(), index_bytes);
  PF_TRY(check_checksums(image, index.first(checksums_bytes)));
  PF_ASSIGN(MapCounts counts, load_map(file, bounds, image, facts, index.first(checksums_bytes)));
  PF_ASSIGN(counts, apply_delta(image, index.subspan(checksums_bytes), counts));
  const CommitRecord& record = image.record;
  if (counts.stored == record.stored_pages && counts.in_bases == record.base_pages) return {};
  return page_file_corrupt(
      fmt::format("the map holds {} stored pages, {} of them in bases; committed were {} and {}",
                  counts.stored, counts.in_bases, record.stored_pages, record.base_pages));
}

}  // namespace

Result<PageFileImage> PageFileImage::load_unnamed(StorageFile& file, std::uint64_t map_bytes_max,
                                                  const WaitBounds& bounds,
                                                  PageMapPreload preload) {
  PF_ASSIGN(const std::uint64_t size, file.size());
  if (size < kLayoutOffset) {
    return page_file_corrupt(
        fmt::format("{} bytes long, a page file has at least {}", size, kLayoutOffset));
  }
  PF_ASSIGN(const AlignedMemory memory, read_section(file, kHeaderOffset, kLayoutOffset, bounds));
  const std::span<const std::byte> head(memory.data(), kLayoutOffset);
  PageFileImage image;
  PF_ASSIGN(image.header, decode_header(head.subspan<kHeaderOffset, kFileBlockBytes>()));
  PF_ASSIGN(image.record,
            decode_commit(image.header, head.subspan<kCommitOffset, kFileBlockBytes>()));
  if (size < image.record.file_bytes) {
    return page_file_corrupt(
        fmt::format("{} bytes long, {} were committed", size, image.record.file_bytes));
  }
  if (preload.header_ != image.header) {
    preload = PageMapPreload();
    PF_TRY(preload.begin(file, image.header, map_bytes_max, bounds));
  }
  image.layout = std::move(preload.layout_);
  image.map = std::move(preload.map_);
  if (Result<void> loaded = load_index(file, bounds, image, preload.facts_); !loaded) {
    if (file.in_flight() > 0) image.map.abandon();
    return tl::make_unexpected(loaded.error());
  }
  return image;
}

Result<PageFileImage> PageFileImage::load(StorageFile& file, std::uint64_t map_bytes_max,
                                          const WaitBounds& bounds, PageMapPreload preload) {
  Result<PageFileImage> image = load_unnamed(file, map_bytes_max, bounds, std::move(preload));
  // A bad transfer or a stale cache on the way may be over at the second look, which takes nothing from the first.
  const bool may_have_been_the_way =
      !image && (image.error().code == Errc::corrupt || image.error().code == Errc::io);
  if (may_have_been_the_way && file.in_flight() == 0) {
    image = load_unnamed(file, map_bytes_max, bounds, PageMapPreload());
  }
  if (!image && image.error().message.find(file.name()) == std::string::npos) {
    return with_context(image.error(), file.name());
  }
  return image;
}

}  // namespace pageferry
