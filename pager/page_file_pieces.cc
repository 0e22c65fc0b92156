// Several large reads in flight: what one read of everything would take on a store that wants depth.
#include "pager/page_file_pieces.h"

#include <algorithm>
#include <utility>

namespace pageferry {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{1} << 20;
constexpr unsigned kReadsInFlight = 4;

}  // namespace

std::vector<FilePiece> pieces_of(std::uint64_t offset, std::span<std::byte> bytes) {
  std::vector<FilePiece> pieces;
  for (std::size_t at = 0; at < bytes.size(); at += kPieceBytes) {
    pieces.push_back({offset + at, bytes.subspan(at, std::min(kPieceBytes, bytes.size() - at))});
  }
  return pieces;
}

Result<void> read_pieces(StorageFile& file, std::span<const FilePiece> pieces,
                         const WaitBounds& bounds, const PieceCheck& check) {
  Result<void> outcome;
  std::vector<IoDone> done;
  std::size_t next = 0;
  const unsigned in_flight_max = std::min(kReadsInFlight, file.queue_depth());
  while ((outcome && next < pieces.size()) || file.in_flight() > 0) {
    while (outcome && next < pieces.size() && file.in_flight() < in_flight_max) {
      outcome = file.submit_read(pieces[next].bytes, pieces[next].offset, next, IoPriority::demand);
      ++next;
    }
    if (file.in_flight() == 0) break;
    done.clear();
    PF_TRY(wait_for_completions(file, bounds, done));
    for (IoDone& one : done) {
      if (!outcome) continue;
      outcome = std::move(one.outcome);
      if (outcome) outcome = check(pieces[one.tag]);
    }
  }
  return outcome;
}

Result<AlignedMemory> read_section(StorageFile& file, std::uint64_t offset, std::size_t bytes,
                                   const WaitBounds& bounds) {
  PF_ASSIGN(AlignedMemory memory, AlignedMemory::map(bytes));
  const auto pieces = pieces_of(offset, std::span<std::byte>(memory.data(), bytes));
  const auto read =
      read_pieces(file, pieces, bounds, [](const FilePiece&) { return Result<void>(); });
  if (read) return memory;
  if (file.in_flight() > 0) memory.abandon();
  return tl::make_unexpected(read.error());
}

}  // namespace pageferry
