// Header, commit record, layout, map, delta, in this order; each is checked before the next is
// looked for. The map is read into its final place with several large reads in flight; its blocks'
// checksums are then chained and compared with the commit record, which catches a map block that is
// valid but old.
#include "pager/page_file_image.h"

#include <fmt/format.h>

#include <algorithm>

namespace pageferry {
namespace {

constexpr std::size_t kMapReadBytes = std::size_t{1} << 20;
constexpr unsigned kMapReadsInFlight = 4;

// Reads bytes.size() bytes, large pieces, a few at a time. On an error what is in flight is waited
// for, as far as the bounds let us.
Result<void> read_all(StorageFile& file, std::span<std::byte> bytes, std::uint64_t offset,
                      const WaitBounds& bounds) {
  Result<void> outcome;
  std::vector<IoDone> done;
  std::size_t next = 0;
  while (next < bytes.size() || file.in_flight() > 0) {
    while (outcome && next < bytes.size() && file.in_flight() < kMapReadsInFlight &&
           file.in_flight() < file.queue_depth()) {
      const std::size_t piece = std::min(kMapReadBytes, bytes.size() - next);
      PF_TRY(file.submit_read(bytes.subspan(next, piece), offset + next, 0, IoPriority::demand));
      next += piece;
    }
    if (file.in_flight() == 0) break;
    done.clear();
    PF_TRY(wait_for_completions(file, bounds, done));
    for (IoDone& one : done) {
      if (outcome && !one.outcome) outcome = std::move(one.outcome);
    }
  }
  return outcome;
}

Result<void> load_map(StorageFile& file, const WaitBounds& bounds, PageFileImage& image) {
  PageMap& map = image.map;
  PF_TRY(read_all(file, map.bytes(), image.header.map_offset, bounds));
  std::uint32_t chain = 0;
  for (std::uint64_t number = 0; number < map.blocks(); ++number) {
    PF_ASSIGN(const std::uint32_t crc,
              open_map_block(image.header.file_id, number, std::as_const(map).block(number)));
    chain = chain_crc(chain, crc);
  }
  if (chain != image.record.map_crc) {
    return page_file_corrupt(
        fmt::format("map blocks are valid but not those that were committed: checksum {:#010x}, "
                    "committed {:#010x}",
                    chain, image.record.map_crc));
  }
  return {};
}

Result<void> load_delta(StorageFile& file, const WaitBounds& bounds, PageFileImage& image) {
  const std::uint64_t blocks = image.record.delta_blocks();
  if (blocks == 0) return {};
  PF_ASSIGN(AlignedMemory memory, AlignedMemory::map(blocks * kFileBlockBytes));
  const std::span<std::byte> bytes(memory.data(), blocks * kFileBlockBytes);
  if (Result<void> read = read_all(file, bytes, image.record.delta_offset, bounds); !read) {
    if (file.in_flight() > 0) memory.abandon();
    return read;
  }
  std::uint32_t chain = 0;
  std::uint64_t entries = 0;
  std::uint64_t next_page = 0;
  for (std::uint64_t number = 0; number < blocks; ++number) {
    const ConstFileBlock raw_block(bytes.data() + number * kFileBlockBytes, kFileBlockBytes);
    PF_ASSIGN(const DeltaBlock block,
              decode_delta_block(image.header, static_cast<std::uint32_t>(number), raw_block));
    chain = chain_crc(chain, block.crc);
    entries += block.entries.size();
    if (raw(block.entries.front().page) < next_page) {
      return page_file_corrupt(fmt::format("delta block {} is out of order", number));
    }
    next_page = raw(block.entries.back().page) + 1;
    for (const DeltaEntry& delta : block.entries) image.map.set(delta.page, delta.entry);
  }
  if (chain != image.record.delta_crc || entries != image.record.delta_entries) {
    return page_file_corrupt(
        fmt::format("delta has {} entries with checksum {:#010x}, committed were "
                    "{} with {:#010x}",
                    entries, chain, image.record.delta_entries, image.record.delta_crc));
  }
  return {};
}

Result<void> check_entries(const PageFileImage& image) {
  std::uint64_t stored = 0;
  for (std::uint64_t page = 0; page < image.map.pages(); ++page) {
    const MapEntry entry = image.map.get(PageIndex{page});
    PF_TRY(check_entry(image.header, image.record, PageIndex{page}, entry));
    if (!entry.is_zero()) ++stored;
  }
  if (stored != image.record.stored_pages) {
    return page_file_corrupt(fmt::format("the map holds {} stored pages, committed were {}", stored,
                                         image.record.stored_pages));
  }
  return {};
}

Result<MemoryLayout> load_layout(StorageFile& file, const PageFileHeader& header,
                                 const WaitBounds& bounds) {
  const std::size_t padded =
      (header.layout_bytes + kFileBlockBytes - 1) / kFileBlockBytes * kFileBlockBytes;
  PF_ASSIGN(AlignedMemory memory, AlignedMemory::map(padded));
  const std::span<std::byte> bytes(memory.data(), padded);
  if (Result<void> read = read_all(file, bytes, kLayoutOffset, bounds); !read) {
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
  if (Result<void> read = read_all(file, head, kHeaderOffset, bounds); !read) {
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
  Result<void> loaded = load_map(file, bounds, image);
  if (loaded) loaded = load_delta(file, bounds, image);
  if (loaded) loaded = check_entries(image);
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
