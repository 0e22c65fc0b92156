// IoBufferPool: a fixed number of equal, aligned buffers for direct I/O, in memory that is
// physically contiguous where the kernel can give huge pages. Knows no file.
//
// Why huge pages: a 1 MiB request over 4 KiB pages has 256 segments, more than many devices take at
// once; the block layer then splits it and the rest waits behind everybody (measured: a demand read
// behind it took 200-500 ms).
//
// Thread rule: one thread. Lifetime: the pool outlives its buffers; destroying it with buffers
// still out is a broken invariant (abort) unless abandon() was called.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "transport/os/error.h"

namespace pageferry {

inline constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;
inline constexpr std::size_t kIoAlignmentBytes = 4096;
// Bound on one pool: a mistaken option must not eat the host.
inline constexpr std::size_t kIoPoolBytesMax = std::size_t{1} << 30;

// Anonymous memory, zero when fresh, populated by first use: 2 MiB and more are aligned to 2 MiB, with
// MADV_HUGEPAGE; less is aligned to kIoAlignmentBytes, with small pages only.
class AlignedMemory {
 public:
  // bytes > 0. Errc::io when the kernel has no memory.
  static Result<AlignedMemory> map(std::size_t bytes);
  AlignedMemory() = default;
  AlignedMemory(AlignedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  AlignedMemory& operator=(AlignedMemory&& other) noexcept;
  ~AlignedMemory();

  std::byte* data() const { return data_; }
  std::size_t size() const { return bytes_; }
  // Asks the kernel for the first `bytes` bytes (all there are, if less) now, so that nobody waits for them later. Changes no
  // content, so it may run in a thread beside one that uses the memory. Best effort: before Linux
  // 5.14 it does nothing (madvise(2), MADV_POPULATE_WRITE).
  void populate(std::size_t bytes) const;
  // Forgets the mapping without unmapping it: for memory that a hung device may still touch.
  void abandon() { data_ = nullptr; }

 private:
  AlignedMemory(std::byte* data, std::size_t bytes) : data_(data), bytes_(bytes) {}
  static Result<AlignedMemory> map_small(std::size_t bytes);
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class IoBufferPool;

// One buffer, back in its pool on destruction. Empty when default constructed or moved from.
class [[nodiscard]] IoBuffer {
 public:
  IoBuffer() = default;
  IoBuffer(IoBuffer&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), bytes_(std::exchange(other.bytes_, {})) {}
  IoBuffer& operator=(IoBuffer&& other) noexcept;
  ~IoBuffer() { reset(); }

  explicit operator bool() const { return pool_ != nullptr; }
  std::span<std::byte> bytes() const { return bytes_; }
  void reset();

 private:
  friend class IoBufferPool;
  IoBuffer(IoBufferPool* pool, std::span<std::byte> bytes) : pool_(pool), bytes_(bytes) {}
  IoBufferPool* pool_ = nullptr;
  std::span<std::byte> bytes_;
};

class IoBufferPool {
 public:
  // buffer_bytes: a multiple of kIoAlignmentBytes; count >= 1; product <= kIoPoolBytesMax, else
  // Errc::invalid.
  static Result<std::unique_ptr<IoBufferPool>> make(std::size_t buffer_bytes, std::size_t count);
  IoBufferPool(const IoBufferPool&) = delete;
  IoBufferPool& operator=(const IoBufferPool&) = delete;
  ~IoBufferPool();

  // The most recently returned buffer (warm in cache), or an empty one when all are out. Never
  // blocks.
  IoBuffer take();
  std::size_t available() const { return free_.size(); }
  std::size_t count() const { return count_; }
  std::size_t buffer_bytes() const { return buffer_bytes_; }
  // As AlignedMemory::populate, of the buffers that are taken first (all there are, if fewer).
  void populate(std::size_t buffers) const;
  // Leaks the memory: buffers that a hung device may still read or write are never unmapped.
  void abandon();

 private:
  friend class IoBuffer;
  IoBufferPool(AlignedMemory memory, std::size_t buffer_bytes, std::size_t count);
  void give_back(std::span<std::byte> bytes);

  AlignedMemory memory_;
  std::size_t buffer_bytes_;
  std::size_t count_;
  bool abandoned_ = false;
  std::vector<std::byte*> free_;
};

}  // namespace pageferry
