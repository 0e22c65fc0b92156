// Blocks are judged by themselves: their checksum begins with the file's id, so an older file's block on the same place of
// the disk never passes. The first pass writes the map in ascending order: reading stops where it has not got to yet, and
// goes on the next time, from the first block that is not sound. A block that is missing between others is passed over,
// so that one cannot keep the rest until the guest stands still.
#include "pager/page_map_preload.h"

#include <fmt/format.h>

#include <algorithm>

#include "pager/page_file_pieces.h"

namespace pageferry {
namespace {

// Whoever asks for steps has other things to do between them, in a blackout too.
constexpr std::uint64_t kStepBlocks = (std::uint64_t{1} << 20) / kFileBlockBytes;

}  // namespace

Result<MapBlockFacts> examine_map_block(const PageFileHeader& header, std::uint64_t number,
                                        ConstFileBlock block) {
  MapBlockFacts facts;
  PF_ASSIGN(facts.crc, open_map_block(header.file_id, number, block));
  const std::uint64_t first = number * kMapEntriesPerBlock;
  const std::uint64_t entries = std::min(kMapEntriesPerBlock, header.pages - first);
  // What the commit record will say is not known yet: nothing is too far or too new.
  CommitRecord anything;
  anything.file_bytes = ~std::uint64_t{0};
  anything.version_max = ~std::uint32_t{0};
  for (std::uint64_t i = 0; i < entries; ++i) {
    const MapEntry entry = load_map_entry(block, i);
    if (!entry_is_sound(header, anything, entry)) {
      PF_TRY(check_entry(header, anything, PageIndex{first + i}, entry));
    }
    facts.version_max = std::max(facts.version_max, entry.version);
    facts.stored += entry.is_zero() ? 0U : 1U;
    if (entry.base() != 0) {
      ++facts.in_bases;
    } else {
      facts.location_end = std::max(facts.location_end, entry.block() + 1);
    }
  }
  facts.sound = true;
  return facts;
}

Result<void> PageMapPreload::begin(StorageFile& file, const PageFileHeader& header,
                                   std::uint64_t map_bytes_max, const WaitBounds& bounds) {
  const std::size_t padded =
      (header.layout_bytes + kFileBlockBytes - 1) / kFileBlockBytes * kFileBlockBytes;
  PF_ASSIGN(const AlignedMemory table, read_section(file, kLayoutOffset, padded, bounds));
  PF_ASSIGN(layout_, decode_layout(header, std::span(table.data(), header.layout_bytes)));
  if (header.map_blocks() * kFileBlockBytes > map_bytes_max) {
    return fail(Errc::invalid, fmt::format("the page map has {} bytes, limit {}",
                                           header.map_blocks() * kFileBlockBytes, map_bytes_max));
  }
  PF_ASSIGN(map_, PageMap::make(header.pages));
  facts_.assign(header.map_blocks(), MapBlockFacts{});
  next_ = 0;
  header_ = header;
  return {};
}

Result<PageMapPreload::Progress> PageMapPreload::advance(StorageFile& file,
                                                         std::uint64_t map_bytes_max,
                                                         const WaitBounds& bounds) {
  if (!header_) {
    PF_ASSIGN(const AlignedMemory head, read_section(file, kHeaderOffset, kFileBlockBytes, bounds));
    PF_ASSIGN(const PageFileHeader header,
              decode_header(ConstFileBlock(head.data(), kFileBlockBytes)));
    PF_TRY(begin(file, header, map_bytes_max, bounds));
  }
  const std::vector<MapBlockRun> runs = next_unsound_runs();
  std::vector<FilePiece> pieces;
  for (const MapBlockRun& run : runs) {
    const std::uint64_t at = run.first * kFileBlockBytes;
    pieces.push_back(
        {header_->map_offset + at, map_.bytes().subspan(at, run.blocks * kFileBlockBytes)});
  }
  const auto read =
      read_pieces(file, pieces, bounds, [](const FilePiece&) { return Result<void>(); });
  if (!read) {
    if (file.in_flight() > 0) map_.abandon();
    *this = PageMapPreload();
    return tl::make_unexpected(read.error());
  }
  bool any_sound = false;
  for (const MapBlockRun& run : runs) {
    for (std::uint64_t number = run.first; number < run.first + run.blocks; ++number) {
      const auto facts = examine_map_block(*header_, number, std::as_const(map_).block(number));
      facts_[number] = facts ? *facts : MapBlockFacts{};
      any_sound = any_sound || facts.has_value();
    }
    next_ = run.first + run.blocks;
  }
  if (any_sound && next_ < facts_.size()) return Progress::more;
  next_ = 0;
  return Progress::all_there_is;
}

// From next_ on, at most one step of them.
std::vector<MapBlockRun> PageMapPreload::next_unsound_runs() const {
  std::vector<MapBlockRun> runs;
  std::uint64_t left = kStepBlocks;
  for (std::uint64_t number = next_; number < facts_.size() && left > 0; ++number) {
    if (facts_[number].sound) continue;
    --left;
    if (!runs.empty() && runs.back().first + runs.back().blocks == number) {
      ++runs.back().blocks;
    } else {
      runs.push_back({.first = number, .blocks = 1});
    }
  }
  return runs;
}

void PageMapPreload::forget(MapBlockRun run) {
  if (run.first >= facts_.size()) return;
  const std::uint64_t blocks = std::min(run.blocks, facts_.size() - run.first);
  for (std::uint64_t i = 0; i < blocks; ++i) facts_[run.first + i].sound = false;
  next_ = std::min(next_, run.first);
}

std::uint64_t PageMapPreload::sound_blocks() const {
  return static_cast<std::uint64_t>(std::count_if(
      facts_.begin(), facts_.end(), [](const MapBlockFacts& facts) { return facts.sound; }));
}

}  // namespace pageferry
