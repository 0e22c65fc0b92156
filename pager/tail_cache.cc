// Pieces are read in order; a hole is read page by page by whoever wants what was in it.
#include "pager/tail_cache.h"

#include <algorithm>

namespace pageferry {
namespace {

constexpr std::size_t kTailPieceBytes = std::size_t{256} << 10;
constexpr unsigned kTailReadsInFlight = 2;  // a demand read waits for no more than these

}  // namespace

TailCache TailCache::make(const PageFileHeader& header, const CommitRecord& record,
                          AlignedMemory memory) {
  TailCache cache;
  if (record.tail_pages == 0) return cache;
  // The tail ends where the index begins, or at the slots when it was too small for both.
  const std::uint64_t end = std::min(header.slots_offset, record.map_checksums_offset);
  const std::uint64_t bytes = std::min<std::uint64_t>(end - header.tail_offset, memory.size());
  if (bytes == 0) return cache;
  cache.memory_ = std::move(memory);
  cache.offset_ = header.tail_offset;
  cache.bytes_ = bytes;
  cache.pieces_.resize((bytes + kTailPieceBytes - 1) / kTailPieceBytes);
  return cache;
}

TailCache::~TailCache() {
  if (in_flight_ > 0) memory_.abandon();
}

std::size_t TailCache::piece_bytes(std::size_t piece) const {
  return std::min(kTailPieceBytes, bytes_ - piece * kTailPieceBytes);
}

void TailCache::start_reads(StorageFile& file) {
  while (next_piece_ < pieces_.size() && in_flight_ < kTailReadsInFlight) {
    const std::size_t at = next_piece_ * kTailPieceBytes;
    const std::span<std::byte> bytes(memory_.data() + at, piece_bytes(next_piece_));
    const auto submitted =
        file.submit_read(bytes, offset_ + at, kTagBit | next_piece_, IoPriority::demand);
    if (submitted) ++in_flight_;
    if (!submitted) pieces_[next_piece_] = Piece::failed;
    ++next_piece_;
  }
}

void TailCache::note_done(const IoDone& done) {
  --in_flight_;
  pieces_[done.tag & ~kTagBit] = done.outcome ? Piece::here : Piece::failed;
}

bool TailCache::expects(std::uint64_t location) const {
  const std::uint64_t at = location * kFileBlockBytes;
  return at >= offset_ && at - offset_ < bytes_ &&
         pieces_[(at - offset_) / kTailPieceBytes] == Piece::expected;
}

std::optional<std::span<const std::byte>> TailCache::find(std::uint64_t location,
                                                          std::uint64_t blocks) const {
  const std::uint64_t begin = location * kFileBlockBytes;
  const std::uint64_t bytes = blocks * kFileBlockBytes;
  if (begin < offset_ || begin - offset_ >= bytes_ || bytes > bytes_ - (begin - offset_)) {
    return std::nullopt;
  }
  const std::size_t at = begin - offset_;
  for (std::size_t piece = at / kTailPieceBytes; piece <= (at + bytes - 1) / kTailPieceBytes;
       ++piece) {
    if (pieces_[piece] != Piece::here) return std::nullopt;
  }
  return std::span<const std::byte>(memory_.data() + at, bytes);
}

}  // namespace pageferry
