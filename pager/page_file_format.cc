// Header, layout table and commit record. Offsets of every field, in one place each: encode and
// decode use the same constants. Map and delta blocks are in page_map_format.cc.
#include "pager/page_file_format.h"

#include <fmt/format.h>

#include <algorithm>

#include "transport/crc32c.h"
#include "transport/little_endian.h"
#include "transport/storage_file.h"

namespace pageferry {
namespace {

using Magic = std::array<unsigned char, 8>;
// First byte not ASCII, then CR LF, ctrl-Z, LF: a transfer that mangles text is noticed (PNG's
// trick).
constexpr Magic kHeaderMagic = {0x89, 'P', 'F', 'P', '\r', '\n', 0x1a, '\n'};
constexpr Magic kCommitMagic = {0x89, 'P', 'F', 'C', '\r', '\n', 0x1a, '\n'};

// Header and commit block begin alike.
constexpr std::size_t kVersionAt = 8;
constexpr std::size_t kCrcAt = 12;
constexpr std::size_t kFileIdAt = 16;
// Header.
constexpr std::size_t kPagesAt = 32;
constexpr std::size_t kPageBytesAt = 40;
constexpr std::size_t kRamBlocksAt = 44;
constexpr std::size_t kLayoutBytesAt = 48;
constexpr std::size_t kLayoutCrcAt = 52;
constexpr std::size_t kMapOffsetAt = 56;
constexpr std::size_t kTailOffsetAt = 64;
constexpr std::size_t kTailBytesAt = 72;
constexpr std::size_t kSlotsOffsetAt = 80;
constexpr std::size_t kHeaderEndAt = 88;  // of version 1; in version 2 the bases follow
constexpr std::size_t kBaseCountAt = 88;
constexpr std::size_t kBaseTableAt = 96;
constexpr std::size_t kBaseRecordBytes = 24;  // commit id, committed bytes
constexpr std::size_t kBaseFileBytesAt = 16;
static_assert(kBaseTableAt + kBasesMax * kBaseRecordBytes <= kFileBlockBytes);
// Commit record.
constexpr std::size_t kCommitIdAt = 32;
constexpr std::size_t kFileBytesAt = 48;
constexpr std::size_t kStoredPagesAt = 56;
constexpr std::size_t kTailPagesAt = 64;
constexpr std::size_t kSlotsAt = 72;
constexpr std::size_t kDeltaOffsetAt = 80;
constexpr std::size_t kDeltaEntriesAt = 88;
constexpr std::size_t kMapCrcAt = 96;
constexpr std::size_t kDeltaCrcAt = 100;
constexpr std::size_t kVersionMaxAt = 104;
constexpr std::size_t kMapChecksumsOffsetAt = 108;
constexpr std::size_t kCommitEndAt = 116;  // of version 1
constexpr std::size_t kBasePagesAt = 116;
constexpr std::size_t kCommitWithBasesEndAt = 124;
// Layout table, one record per RAM block: length, backing page, name length, name.
constexpr std::size_t kLayoutRecordBytes = 18;
constexpr std::size_t kLayoutBackingAt = 8;
constexpr std::size_t kLayoutNameBytesAt = 16;
constexpr std::size_t kLayoutBytesMax = kBlocksMax * (kLayoutRecordBytes + kBlockNameBytesMax);

std::uint64_t align_up(std::uint64_t value, std::uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

bool all_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

Id128 load_id(ConstFileBlock from, std::size_t at) {
  Id128 id;
  std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(at), id.size(), id.begin());
  return id;
}

void store_id(FileBlock to, std::size_t at, const Id128& id) {
  std::copy(id.begin(), id.end(), to.begin() + static_cast<std::ptrdiff_t>(at));
}

void begin_block(FileBlock to, const Magic& magic, std::uint32_t version, const Id128& file_id) {
  std::fill(to.begin(), to.end(), std::byte{0});
  std::transform(magic.begin(), magic.end(), to.begin(),
                 [](unsigned char c) { return std::byte{c}; });
  store_le<std::uint32_t>(to, kVersionAt, version);
  store_id(to, kFileIdAt, file_id);
}

// Magic, version and checksum of the header or commit block. Result: the version.
Result<std::uint32_t> check_block(ConstFileBlock from, const Magic& magic, std::string_view what) {
  const bool magic_fits =
      std::equal(magic.begin(), magic.end(), from.begin(),
                 [](unsigned char c, std::byte b) { return std::byte{c} == b; });
  if (!magic_fits)
    return page_file_corrupt(fmt::format("{} has no magic, this is not a page file", what));
  const auto version = load_le<std::uint32_t>(from, kVersionAt);
  if (version != kPageFileVersion && version != kPageFileVersionWithBases) {
    return fail(Errc::version,
                fmt::format("page file: {} has format version {}, this program reads {} and {}",
                            what, version, kPageFileVersion, kPageFileVersionWithBases));
  }
  const auto stored = load_le<std::uint32_t>(from, kCrcAt);
  const std::uint32_t computed = page_file_block_crc(load_id(from, kFileIdAt), from, kCrcAt);
  if (stored != computed) {
    return page_file_corrupt(
        fmt::format("{} checksum is {:#010x}, its bytes give {:#010x}", what, stored, computed));
  }
  return version;
}

Result<void> check_zeros_after(ConstFileBlock from, std::size_t end_at, std::string_view what) {
  if (all_zero(from.subspan(end_at))) return {};
  return page_file_corrupt(fmt::format("{} has bytes after its last field at {}", what, end_at));
}

void store_bases(FileBlock to, const std::vector<PageFileBase>& bases) {
  PF_CHECK(bases.size() <= kBasesMax);
  store_le<std::uint32_t>(to, kBaseCountAt, static_cast<std::uint32_t>(bases.size()));
  std::size_t at = kBaseTableAt;
  for (const PageFileBase& base : bases) {
    store_id(to, at, base.commit_id);
    store_le<std::uint64_t>(to, at + kBaseFileBytesAt, base.file_bytes);
    at += kBaseRecordBytes;
  }
}

// The table of bases, as far as it can be judged before the other fields are.
Result<std::vector<PageFileBase>> load_bases(ConstFileBlock from) {
  const auto count = load_le<std::uint32_t>(from, kBaseCountAt);
  if (count == 0 || count > kBasesMax) {
    return page_file_corrupt(fmt::format("{} bases, limit 1..{}", count, kBasesMax));
  }
  if (!all_zero(
          from.subspan(kBaseCountAt + sizeof count, kBaseTableAt - kBaseCountAt - sizeof count))) {
    return page_file_corrupt("header has bytes between the number of bases and the bases");
  }
  std::vector<PageFileBase> bases(count);
  std::size_t at = kBaseTableAt;
  for (PageFileBase& base : bases) {
    base.commit_id = load_id(from, at);
    base.file_bytes = load_le<std::uint64_t>(from, at + kBaseFileBytesAt);
    at += kBaseRecordBytes;
  }
  PF_TRY(check_zeros_after(from, at, "header"));
  return bases;
}

Result<void> check_bases(const PageFileHeader& h) {
  for (std::size_t i = 0; i < h.bases.size(); ++i) {
    const PageFileBase& base = h.bases[i];
    if (base.file_bytes % kFileBlockBytes != 0 || base.file_bytes < h.tail_offset ||
        base.file_bytes > kFileBytesMax) {
      return page_file_corrupt(fmt::format("base {} has {} bytes, a multiple of {} in {}..{}",
                                           i + 1, base.file_bytes, kFileBlockBytes, h.tail_offset,
                                           kFileBytesMax));
    }
    const auto same = [&](const PageFileBase& other) { return other.commit_id == base.commit_id; };
    if (std::count_if(h.bases.begin(), h.bases.end(), same) > 1) {
      return page_file_corrupt(fmt::format("base {} is named twice", to_hex(base.commit_id)));
    }
  }
  return {};
}

Result<void> check_header_fields(const PageFileHeader& h, std::uint32_t page_bytes) {
  if (page_bytes != kPageSizeBytes) {
    return page_file_corrupt(
        fmt::format("page size is {}, must be {}", page_bytes, kPageSizeBytes));
  }
  if (h.pages == 0 || h.pages > pages_of_bytes(kMemoryBytesMax)) {
    return page_file_corrupt(
        fmt::format("{} pages, limit 1..{}", h.pages, pages_of_bytes(kMemoryBytesMax)));
  }
  if (h.ram_blocks == 0 || h.ram_blocks > kBlocksMax) {
    return page_file_corrupt(fmt::format("{} RAM blocks, limit 1..{}", h.ram_blocks, kBlocksMax));
  }
  if (h.layout_bytes == 0 || h.layout_bytes > kLayoutBytesMax) {
    return page_file_corrupt(
        fmt::format("layout of {} bytes, limit 1..{}", h.layout_bytes, kLayoutBytesMax));
  }
  const auto expect = [](std::string_view field, std::uint64_t is,
                         std::uint64_t must) -> Result<void> {
    if (is == must) return {};
    return page_file_corrupt(fmt::format("{} is {}, must be {}", field, is, must));
  };
  PF_TRY(expect("map offset", h.map_offset,
                align_up(kLayoutOffset + h.layout_bytes, kSectionAlignmentBytes)));
  PF_TRY(expect("tail offset", h.tail_offset,
                align_up(h.map_offset + h.map_blocks() * kFileBlockBytes, kSectionAlignmentBytes)));
  if (h.tail_bytes % kSectionAlignmentBytes != 0 || h.tail_bytes > kFileBytesMax / 2) {
    return page_file_corrupt(fmt::format("tail of {} bytes is not a multiple of {} up to {}",
                                         h.tail_bytes, kSectionAlignmentBytes, kFileBytesMax / 2));
  }
  PF_TRY(expect("slots offset", h.slots_offset, h.tail_offset + h.tail_bytes));
  return check_bases(h);
}

}  // namespace

std::string to_hex(const Id128& id) {
  std::string text;
  for (std::byte b : id) text += fmt::format("{:02x}", static_cast<unsigned>(b));
  return text;
}

std::string PageFileBase::file_name() const {
  return "base." + to_hex(commit_id);
}

bool is_base_file_name(std::string_view name) {
  constexpr std::string_view kPrefix = "base.";
  return name.size() == kBaseFileNameBytes && name.starts_with(kPrefix) &&
         name.find_first_not_of("0123456789abcdef", kPrefix.size()) == std::string_view::npos;
}

PageFileHeader plan_page_file(const Id128& file_id, const MemoryLayout& layout,
                              std::uint64_t tail_bytes) {
  const std::vector<std::byte> table = encode_layout(layout);
  PageFileHeader h;
  h.file_id = file_id;
  h.pages = layout.pages();
  h.ram_blocks = static_cast<std::uint32_t>(layout.blocks().size());
  h.layout_bytes = static_cast<std::uint32_t>(table.size());
  h.layout_crc = crc32c(table);
  h.map_offset = align_up(kLayoutOffset + h.layout_bytes, kSectionAlignmentBytes);
  h.tail_offset = align_up(h.map_offset + h.map_blocks() * kFileBlockBytes, kSectionAlignmentBytes);
  h.tail_bytes = align_up(tail_bytes, kSectionAlignmentBytes);
  h.slots_offset = h.tail_offset + h.tail_bytes;
  return h;
}

void encode_header(const PageFileHeader& h, FileBlock to) {
  begin_block(to, kHeaderMagic, h.format_version(), h.file_id);
  store_le<std::uint64_t>(to, kPagesAt, h.pages);
  store_le<std::uint32_t>(to, kPageBytesAt, kPageSizeBytes);
  store_le<std::uint32_t>(to, kRamBlocksAt, h.ram_blocks);
  store_le<std::uint32_t>(to, kLayoutBytesAt, h.layout_bytes);
  store_le<std::uint32_t>(to, kLayoutCrcAt, h.layout_crc);
  store_le<std::uint64_t>(to, kMapOffsetAt, h.map_offset);
  store_le<std::uint64_t>(to, kTailOffsetAt, h.tail_offset);
  store_le<std::uint64_t>(to, kTailBytesAt, h.tail_bytes);
  store_le<std::uint64_t>(to, kSlotsOffsetAt, h.slots_offset);
  if (!h.bases.empty()) store_bases(to, h.bases);
  store_le<std::uint32_t>(to, kCrcAt, page_file_block_crc(h.file_id, to, kCrcAt));
}

Result<PageFileHeader> decode_header(ConstFileBlock from) {
  PF_ASSIGN(const std::uint32_t version, check_block(from, kHeaderMagic, "header"));
  PageFileHeader h;
  if (version == kPageFileVersion) {
    PF_TRY(check_zeros_after(from, kHeaderEndAt, "header"));
  } else {
    PF_ASSIGN(h.bases, load_bases(from));
  }
  h.file_id = load_id(from, kFileIdAt);
  h.pages = load_le<std::uint64_t>(from, kPagesAt);
  h.ram_blocks = load_le<std::uint32_t>(from, kRamBlocksAt);
  h.layout_bytes = load_le<std::uint32_t>(from, kLayoutBytesAt);
  h.layout_crc = load_le<std::uint32_t>(from, kLayoutCrcAt);
  h.map_offset = load_le<std::uint64_t>(from, kMapOffsetAt);
  h.tail_offset = load_le<std::uint64_t>(from, kTailOffsetAt);
  h.tail_bytes = load_le<std::uint64_t>(from, kTailBytesAt);
  h.slots_offset = load_le<std::uint64_t>(from, kSlotsOffsetAt);
  PF_TRY(check_header_fields(h, load_le<std::uint32_t>(from, kPageBytesAt)));
  return h;
}

std::vector<std::byte> encode_layout(const MemoryLayout& layout) {
  std::vector<std::byte> table;
  for (const RamBlock& block : layout.blocks()) {
    const std::size_t at = table.size();
    table.resize(at + kLayoutRecordBytes);
    const auto record = std::span(table).subspan(at);
    store_le<std::uint64_t>(record, 0, block.length_bytes);
    store_le<std::uint64_t>(record, kLayoutBackingAt, block.backing_page_bytes);
    store_le<std::uint16_t>(record, kLayoutNameBytesAt,
                            static_cast<std::uint16_t>(block.name.size()));
    for (char c : block.name) table.push_back(static_cast<std::byte>(c));
  }
  return table;
}

Result<MemoryLayout> decode_layout(const PageFileHeader& header, std::span<const std::byte> from) {
  PF_CHECK(from.size() == header.layout_bytes);
  if (const std::uint32_t crc = crc32c(from); crc != header.layout_crc) {
    return page_file_corrupt(fmt::format("layout checksum is {:#010x}, its bytes give {:#010x}",
                                         header.layout_crc, crc));
  }
  std::vector<RamBlock> blocks;
  while (!from.empty()) {
    if (from.size() < kLayoutRecordBytes) {
      return page_file_corrupt(fmt::format("layout ends inside RAM block {}", blocks.size()));
    }
    RamBlock block;
    block.length_bytes = load_le<std::uint64_t>(from, 0);
    block.backing_page_bytes = load_le<std::uint64_t>(from, kLayoutBackingAt);
    const std::size_t name_bytes = load_le<std::uint16_t>(from, kLayoutNameBytesAt);
    from = from.subspan(kLayoutRecordBytes);
    if (name_bytes > kBlockNameBytesMax || name_bytes > from.size()) {
      return page_file_corrupt(fmt::format("name of RAM block {} has {} bytes, limit {}",
                                           blocks.size(), name_bytes,
                                           std::min(kBlockNameBytesMax, from.size())));
    }
    const auto* name = reinterpret_cast<const char*>(from.data());
    block.name.assign(name, name_bytes);
    from = from.subspan(name_bytes);
    blocks.push_back(std::move(block));
    if (blocks.size() > header.ram_blocks) break;
  }
  if (blocks.size() != header.ram_blocks) {
    return page_file_corrupt(fmt::format("layout names {}{} RAM blocks, the header {}",
                                         from.empty() ? "" : "more than ", blocks.size(),
                                         header.ram_blocks));
  }
  Result<MemoryLayout> layout = MemoryLayout::make(std::move(blocks));
  if (!layout) return page_file_corrupt(layout.error().message);
  if (layout->pages() != header.pages) {
    return page_file_corrupt(
        fmt::format("layout has {} pages, the header {}", layout->pages(), header.pages));
  }
  return layout;
}

void encode_commit(const CommitRecord& r, FileBlock to) {
  begin_block(to, kCommitMagic, r.format_version, r.file_id);
  store_id(to, kCommitIdAt, r.commit_id);
  store_le<std::uint64_t>(to, kFileBytesAt, r.file_bytes);
  store_le<std::uint64_t>(to, kStoredPagesAt, r.stored_pages);
  store_le<std::uint64_t>(to, kTailPagesAt, r.tail_pages);
  store_le<std::uint64_t>(to, kSlotsAt, r.slots);
  store_le<std::uint64_t>(to, kDeltaOffsetAt, r.delta_offset);
  store_le<std::uint64_t>(to, kDeltaEntriesAt, r.delta_entries);
  store_le<std::uint32_t>(to, kMapCrcAt, r.map_crc);
  store_le<std::uint32_t>(to, kDeltaCrcAt, r.delta_crc);
  store_le<std::uint32_t>(to, kVersionMaxAt, r.version_max);
  store_le<std::uint64_t>(to, kMapChecksumsOffsetAt, r.map_checksums_offset);
  if (r.format_version != kPageFileVersion) {
    store_le<std::uint64_t>(to, kBasePagesAt, r.base_pages);
  }
  store_le<std::uint32_t>(to, kCrcAt, page_file_block_crc(r.file_id, to, kCrcAt));
}

namespace {

Result<void> check_commit_fields(const PageFileHeader& h, const CommitRecord& r) {
  if (r.format_version != h.format_version()) {
    return page_file_corrupt(fmt::format("commit record has format version {}, the header {}",
                                         r.format_version, h.format_version()));
  }
  if (r.file_id != h.file_id) {
    return page_file_corrupt(fmt::format("commit record is of file {}, the header of {}",
                                         to_hex(r.file_id), to_hex(h.file_id)));
  }
  const auto bounded = [](std::string_view field, std::uint64_t is,
                          std::uint64_t limit) -> Result<void> {
    if (is <= limit) return {};
    return page_file_corrupt(fmt::format("{} is {}, limit {}", field, is, limit));
  };
  PF_TRY(bounded("committed size", r.file_bytes, kFileBytesMax));
  PF_TRY(bounded("slots offset", h.slots_offset, r.file_bytes));
  PF_TRY(bounded("stored pages", r.stored_pages, h.pages));
  PF_TRY(bounded("tail pages", r.tail_pages, r.stored_pages));
  PF_TRY(bounded("pages in bases", r.base_pages, r.stored_pages - r.tail_pages));
  PF_TRY(bounded("slots", r.slots, h.pages));
  PF_TRY(bounded("delta entries", r.delta_entries, h.pages));
  for (const PageFileBase& base : h.bases) {
    if (base.commit_id != r.commit_id) continue;
    return page_file_corrupt(
        fmt::format("commit {} is named as its own base", to_hex(r.commit_id)));
  }
  if (r.file_bytes % kFileBlockBytes != 0) {
    return page_file_corrupt(
        fmt::format("committed size {} is not a multiple of {}", r.file_bytes, kFileBlockBytes));
  }
  const auto fits = [&](std::uint64_t offset, std::uint64_t blocks) {
    return offset >= h.tail_offset && is_page_aligned(offset) && offset <= r.file_bytes &&
           blocks * kFileBlockBytes <= r.file_bytes - offset;
  };
  if (!fits(r.map_checksums_offset, h.map_checksum_blocks())) {
    return page_file_corrupt(
        fmt::format("map checksums of {} blocks at offset {} do not fit between {} and {}",
                    h.map_checksum_blocks(), r.map_checksums_offset, h.tail_offset, r.file_bytes));
  }
  const std::uint64_t behind = r.map_checksums_offset + h.map_checksum_blocks() * kFileBlockBytes;
  const bool delta_fits = r.delta_entries == 0
                              ? r.delta_offset == 0
                              : r.delta_offset == behind && fits(behind, r.delta_blocks());
  if (!delta_fits) {
    return page_file_corrupt(
        fmt::format("delta of {} entries at offset {} does not fit between {} and {}",
                    r.delta_entries, r.delta_offset, behind, r.file_bytes));
  }
  return {};
}

}  // namespace

Result<CommitRecord> decode_commit(const PageFileHeader& header, ConstFileBlock from) {
  if (all_zero(from)) {
    return page_file_corrupt("not committed: its writer did not finish, the content is scrap");
  }
  CommitRecord r;
  PF_ASSIGN(r.format_version, check_block(from, kCommitMagic, "commit record"));
  const bool has_bases = r.format_version != kPageFileVersion;
  PF_TRY(
      check_zeros_after(from, has_bases ? kCommitWithBasesEndAt : kCommitEndAt, "commit record"));
  if (has_bases) r.base_pages = load_le<std::uint64_t>(from, kBasePagesAt);
  r.file_id = load_id(from, kFileIdAt);
  r.commit_id = load_id(from, kCommitIdAt);
  r.file_bytes = load_le<std::uint64_t>(from, kFileBytesAt);
  r.stored_pages = load_le<std::uint64_t>(from, kStoredPagesAt);
  r.tail_pages = load_le<std::uint64_t>(from, kTailPagesAt);
  r.slots = load_le<std::uint64_t>(from, kSlotsAt);
  r.delta_offset = load_le<std::uint64_t>(from, kDeltaOffsetAt);
  r.delta_entries = load_le<std::uint64_t>(from, kDeltaEntriesAt);
  r.map_crc = load_le<std::uint32_t>(from, kMapCrcAt);
  r.delta_crc = load_le<std::uint32_t>(from, kDeltaCrcAt);
  r.version_max = load_le<std::uint32_t>(from, kVersionMaxAt);
  r.map_checksums_offset = load_le<std::uint64_t>(from, kMapChecksumsOffsetAt);
  PF_TRY(check_commit_fields(header, r));
  return r;
}

}  // namespace pageferry
