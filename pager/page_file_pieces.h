// Reading many pieces of a page file at once. Internal to pager.
//
// Thread rule: one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "transport/io_buffer.h"
#include "transport/storage_file.h"
#include "transport/storage_wait.h"

namespace pageferry {

struct FilePiece {
  std::uint64_t offset = 0;
  std::span<std::byte> bytes;
};
using PieceCheck = std::function<Result<void>(const FilePiece& piece)>;

// Reads all pieces, a few at a time; each is checked while others are on their way. `file`: nothing in flight. Ends with the
// first error; what is in flight is then waited for, as far as the bounds let us: the caller leaks the memory when
// file.in_flight() is not 0 afterwards.
Result<void> read_pieces(StorageFile& file, std::span<const FilePiece> pieces,
                         const WaitBounds& bounds, const PieceCheck& check);

// The same into new memory, from one place of the file; a whole number of blocks. Never leaves anything in flight that the
// caller had to know of.
Result<AlignedMemory> read_section(StorageFile& file, std::uint64_t offset, std::size_t bytes,
                                   const WaitBounds& bounds);

// [offset, offset + bytes.size()) as pieces of at most 1 MiB.
std::vector<FilePiece> pieces_of(std::uint64_t offset, std::span<std::byte> bytes);

}  // namespace pageferry
