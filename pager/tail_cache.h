// TailCache: the tail of a page file in memory. The tail is what the guest wrote last, so it is what the guest touches first
// at the destination: its kernel's stacks and counters, the pages that it was working on. It lies in one row in the file, while
// its pages are scattered over the guest: read in large pieces when the file is opened, it answers at once what would be a
// thousand small reads.
//
// Thread rule: one thread. Lifetime: the memory is leaked, not freed, when it is destroyed before note_done() was told of each
// read that it started (a hung store may still write to it).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "pager/page_file_format.h"
#include "transport/io_buffer.h"
#include "transport/storage_file.h"

namespace pageferry {

class TailCache {
 public:
  // Marks the tags of its reads: no ticket of others has this bit.
  static constexpr std::uint64_t kTagBit = std::uint64_t{1} << 63;

  TailCache() = default;
  // Of as much of the file's tail, from its beginning, as `memory` holds. Empty for a file without a tail.
  static TailCache make(const PageFileHeader& header, const CommitRecord& record,
                        AlignedMemory memory);
  TailCache(TailCache&&) = default;
  TailCache& operator=(TailCache&&) = default;
  ~TailCache();

  // Starts reads as long as few are in flight. A read that cannot be started, or fails, leaves a hole.
  void start_reads(StorageFile& file);
  // A read with kTagBit in its tag has finished.
  void note_done(const IoDone& done);

  // The block will be here soon: its piece is on its way or will be read next.
  bool expects(std::uint64_t location) const;
  // The bytes of `blocks` file blocks from `location`, if all of them are here. Valid as long as the cache. Not checked.
  std::optional<std::span<const std::byte>> find(std::uint64_t location,
                                                 std::uint64_t blocks) const;

 private:
  std::size_t piece_bytes(std::size_t piece) const;

  AlignedMemory memory_;
  std::uint64_t offset_ = 0;  // in the file
  std::size_t bytes_ = 0;
  enum class Piece : std::uint8_t { expected, here, failed };
  std::vector<Piece> pieces_;
  std::size_t next_piece_ = 0;
  unsigned in_flight_ = 0;
};

}  // namespace pageferry
