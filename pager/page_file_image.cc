// Header, commit record, layout, map, delta, in this order; each is checked before the next is
// looked for. The map is read into its final place with several large reads in flight; its blocks'
// checksums are then chained and compared with the commit record, which catches a map block that is
// valid but old.
#include "pager/page_file_image.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

namespace pageferry {
namespace {

constexpr std::size_t kReadBytes = std::size_t{1} << 20;
constexpr unsigned kReadsInFlight = 4;

using PieceCheck = std::function<Result<void>(std::size_t at, std::size_t bytes)>;

Result<void> accept_piece(std::size_t, std::size_t) {
  return {};
}

// Reads bytes.size() bytes, large pieces, a few at a time; each is checked while the others are on
// their way. On an error what is in flight is waited for, as far as the bounds let us.
Result<void> read_all(StorageFile& file, std::span<std::byte> bytes, std::uint64_t offset,
                      const WaitBounds& bounds, const PieceCheck& check) {
  Result<void> outcome;
  std::vector<IoDone> done;
  std::size_t next = 0;
  const unsigned in_flight_max = std::min(kReadsInFlight, file.queue_depth());
  while ((outcome && next < bytes.size()) || file.in_flight() > 0) {
    while (outcome && next < bytes.size() && file.in_flight() < in_flight_max) {
      const std::size_t piece = std::min(kReadBytes, bytes.size() - next);
      outcome =
          file.submit_read(bytes.subspan(next, piece), offset + next, next, IoPriority::demand);
      next += piece;
    }
    if (file.in_flight() == 0) break;
    done.clear();
    PF_TRY(wait_for_completions(file, bounds, done));
    for (IoDone& one : done) {
      if (!outcome) continue;
      outcome = std::move(one.outcome);
      if (outcome) outcome = check(one.tag, std::min(kReadBytes, bytes.size() - one.tag));
    }
  }
  return outcome;
}

struct MapFacts {
  std::vector<std::uint32_t> crcs;  // of the map blocks
  std::uint64_t stored = 0;         // pages with content
};

// The map blocks in [at, at + bytes) of the map: checksum, number, and every entry.
Result<void> check_map_piece(const PageFileImage& image, std::size_t at, std::size_t bytes,
                             MapFacts& facts) {
  for (std::uint64_t number = at / kFileBlockBytes; number < (at + bytes) / kFileBlockBytes;
       ++number) {
    const ConstFileBlock block = image.map.block(number);
    PF_ASSIGN(facts.crcs[number], open_map_block(image.header.file_id, number, block));
    const std::uint64_t first = number * kMapEntriesPerBlock;
    const std::uint64_t entries = std::min(kMapEntriesPerBlock, image.map.pages() - first);
    for (std::uint64_t i = 0; i < entries; ++i) {
      const MapEntry entry = load_map_entry(block, i);
      if (!entry_is_sound(image.header, image.record, entry)) {
        return check_entry(image.header, image.record, PageIndex{first + i}, entry);
      }
      if (!entry.is_zero()) ++facts.stored;
    }
  }
  return {};
}

Result<void> load_map(StorageFile& file, const WaitBounds& bounds, PageFileImage& image,
                      MapFacts& facts) {
  facts.crcs.resize(image.map.blocks());
  PF_TRY(read_all(
      file, image.map.bytes(), image.header.map_offset, bounds,
      [&](std::size_t at, std::size_t bytes) { return check_map_piece(image, at, bytes, facts); }));
  std::uint32_t chain = 0;
  for (const std::uint32_t crc : facts.crcs) chain = chain_crc(chain, crc);
  if (chain != image.record.map_crc) {
    return page_file_corrupt(
        fmt::format("map blocks are valid but not those that were committed: checksum {:#010x}, "
                    "committed {:#010x}",
                    chain, image.record.map_crc));
  }
  return {};
}

Result<void> load_delta(StorageFile& file, const WaitBounds& bounds, PageFileImage& image,
                        MapFacts& facts) {
  const std::uint64_t blocks = image.record.delta_blocks();
  if (blocks == 0) return {};
  PF_ASSIGN(AlignedMemory memory, AlignedMemory::map(blocks * kFileBlockBytes));
  const std::span<std::byte> bytes(memory.data(), blocks * kFileBlockBytes);
  if (Result<void> read = read_all(file, bytes, image.record.delta_offset, bounds, accept_piece);
      !read) {
    if (file.in_flight() > 0) memory.abandon();
    return read;
  }
  std::uint32_t chain = 0;
  std::uint64_t entries = 0;
  std::uint64_t next_page = 0;
  for (std::uint64_t number = 0; number < blocks; ++number) {
    const ConstFileBlock raw_block(bytes.data() + number * kFileBlockBytes, kFileBlockBytes);
    const Result<DeltaBlock> decoded =
        decode_delta_block(image.header, static_cast<std::uint32_t>(number), raw_block);
    if (!decoded) return tl::make_unexpected(decoded.error());
    const DeltaBlock& block = *decoded;
    chain = chain_crc(chain, block.crc);
    entries += block.entries.size();
    if (raw(block.entries.front().page) < next_page) {
      return page_file_corrupt(fmt::format("delta block {} is out of order", number));
    }
    next_page = raw(block.entries.back().page) + 1;
    for (const DeltaEntry& delta : block.entries) {
      PF_TRY(check_entry(image.header, image.record, delta.page, delta.entry));
      facts.stored -= image.map.get(delta.page).is_zero() ? 0U : 1U;
      facts.stored += delta.entry.is_zero() ? 0U : 1U;
      image.map.set(delta.page, delta.entry);
    }
  }
  if (chain != image.record.delta_crc || entries != image.record.delta_entries) {
    return page_file_corrupt(
        fmt::format("delta has {} entries with checksum {:#010x}, committed were "
                    "{} with {:#010x}",
                    entries, chain, image.record.delta_entries, image.record.delta_crc));
  }
  return {};
}

Result<MemoryLayout> load_layout(StorageFile& file, const PageFileHeader& header,
                                 const WaitBounds& bounds) {
  const std::size_t padded =
      (header.layout_bytes + kFileBlockBytes - 1) / kFileBlockBytes * kFileBlockBytes;
  PF_ASSIGN(AlignedMemory memory, AlignedMemory::map(padded));
  const std::span<std::byte> bytes(memory.data(), padded);
  if (Result<void> read = read_all(file, bytes, kLayoutOffset, bounds, accept_piece); !read) {
    if (file.in_flight() > 0) memory.abandon();
    return tl::make_unexpected(read.error());
  }
  return decode_layout(header, bytes.first(header.layout_bytes));
}

Result<PageFileImage> load_unnamed(StorageFile& file, std::uint64_t map_bytes_max,
                                   const WaitBounds& bounds) {
  PF_ASSIGN(const std::uint64_t size, file.size());
  if (size < kLayoutOffset) {
    return page_file_corrupt(
        fmt::format("{} bytes long, a page file has at least {}", size, kLayoutOffset));
  }
  PF_ASSIGN(AlignedMemory memory, AlignedMemory::map(kLayoutOffset));
  const std::span<std::byte> head(memory.data(), kLayoutOffset);
  if (Result<void> read = read_all(file, head, kHeaderOffset, bounds, accept_piece); !read) {
    if (file.in_flight() > 0) memory.abandon();
    return tl::make_unexpected(read.error());
  }
  PageFileImage image;
  PF_ASSIGN(image.header, decode_header(head.subspan<kHeaderOffset, kFileBlockBytes>()));
  PF_ASSIGN(image.record,
            decode_commit(image.header, head.subspan<kCommitOffset, kFileBlockBytes>()));
  if (size < image.record.file_bytes) {
    return page_file_corrupt(
        fmt::format("{} bytes long, {} were committed", size, image.record.file_bytes));
  }
  PF_ASSIGN(image.layout, load_layout(file, image.header, bounds));
  if (image.header.map_blocks() * kFileBlockBytes > map_bytes_max) {
    return fail(Errc::invalid,
                fmt::format("the page map has {} bytes, limit {}",
                            image.header.map_blocks() * kFileBlockBytes, map_bytes_max));
  }
  PF_ASSIGN(image.map, PageMap::make(image.header.pages));
  MapFacts facts;
  Result<void> loaded = load_map(file, bounds, image, facts);
  if (loaded) loaded = load_delta(file, bounds, image, facts);
  if (loaded && facts.stored != image.record.stored_pages) {
    loaded = page_file_corrupt(fmt::format("the map holds {} stored pages, committed were {}",
                                           facts.stored, image.record.stored_pages));
  }
  if (!loaded) {
    if (file.in_flight() > 0) image.map.abandon();
    return tl::make_unexpected(loaded.error());
  }
  return image;
}

}  // namespace

Result<PageFileImage> PageFileImage::load(StorageFile& file, std::uint64_t map_bytes_max,
                                          const WaitBounds& bounds) {
  Result<PageFileImage> image = load_unnamed(file, map_bytes_max, bounds);
  if (!image && image.error().message.find(file.name()) == std::string::npos) {
    return with_context(image.error(), file.name());
  }
  return image;
}

}  // namespace pageferry
