// One mapping, cut into buffers. The mapping is over-sized by 2 MiB, and the ends are cut off so
// that it begins on a huge page border; MADV_HUGEPAGE then lets the first touch of each 2 MiB bring
// in one huge page. Where huge pages are off the memory is ordinary and everything still works,
// slower.
//
// Memory of less than a huge page gets small pages, and says so, since it would otherwise be merged
// with a neighbour that wants huge ones: a header of 8 KiB read in the blackout would first wait
// until 2 MiB are found and zeroed (measured: 5 ms each time where memory is not warm).
#include "transport/io_buffer.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

namespace pageferry {

Result<AlignedMemory> AlignedMemory::map_small(std::size_t bytes) {
  const std::size_t rounded = (bytes + kIoAlignmentBytes - 1) & ~(kIoAlignmentBytes - 1);
  void* start =
      ::mmap(nullptr, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) {
    return syscall_error("mmap", fmt::format("{} bytes of buffers", rounded));
  }
  (void)::madvise(start, rounded, MADV_NOHUGEPAGE);
  return AlignedMemory(static_cast<std::byte*>(start), rounded);
}

Result<AlignedMemory> AlignedMemory::map(std::size_t bytes) {
  PF_CHECK(bytes > 0);
  if (bytes < kHugePageBytes) return map_small(bytes);
  const std::size_t rounded = (bytes + kHugePageBytes - 1) & ~(kHugePageBytes - 1);
  const std::size_t mapped = rounded + kHugePageBytes;
  void* start = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return syscall_error("mmap", fmt::format("{} bytes of buffers", mapped));
  auto* base = static_cast<std::byte*>(start);
  const auto address = reinterpret_cast<std::uintptr_t>(base);
  const std::size_t head = (kHugePageBytes - address % kHugePageBytes) % kHugePageBytes;
  const std::size_t tail = mapped - head - rounded;
  if (head != 0) ::munmap(base, head);
  if (tail != 0) ::munmap(base + head + rounded, tail);
  // Only advice: without huge pages direct I/O still works.
  (void)::madvise(base + head, rounded, MADV_HUGEPAGE);
  return AlignedMemory(base + head, rounded);
}

AlignedMemory& AlignedMemory::operator=(AlignedMemory&& other) noexcept {
  if (this != &other) {
    if (data_ != nullptr) ::munmap(data_, bytes_);
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

// Huge page by huge page: whoever maps memory meanwhile waits for one of them at most.
void AlignedMemory::populate(std::size_t bytes) const {
  const std::size_t end = std::min(bytes, bytes_);
  for (std::size_t offset = 0; offset < end; offset += kHugePageBytes) {
    if (::madvise(data_ + offset, std::min(kHugePageBytes, end - offset), MADV_POPULATE_WRITE) !=
        0) {
      return;
    }
  }
}

AlignedMemory::~AlignedMemory() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

IoBuffer& IoBuffer::operator=(IoBuffer&& other) noexcept {
  if (this != &other) {
    reset();
    pool_ = std::exchange(other.pool_, nullptr);
    bytes_ = std::exchange(other.bytes_, {});
  }
  return *this;
}

void IoBuffer::reset() {
  if (pool_ != nullptr) pool_->give_back(bytes_);
  pool_ = nullptr;
  bytes_ = {};
}

Result<std::unique_ptr<IoBufferPool>> IoBufferPool::make(std::size_t buffer_bytes,
                                                         std::size_t count) {
  if (buffer_bytes == 0 || buffer_bytes % kIoAlignmentBytes != 0 ||
      buffer_bytes > kIoPoolBytesMax) {
    return fail(Errc::invalid, fmt::format("I/O buffer size {} is not a multiple of {} in 1..{}",
                                           buffer_bytes, kIoAlignmentBytes, kIoPoolBytesMax));
  }
  if (count == 0 || count > kIoPoolBytesMax / buffer_bytes) {
    return fail(Errc::invalid, fmt::format("{} I/O buffers of {} bytes, limit 1..{}", count,
                                           buffer_bytes, kIoPoolBytesMax / buffer_bytes));
  }
  PF_ASSIGN(AlignedMemory memory, AlignedMemory::map(buffer_bytes * count));
  return std::unique_ptr<IoBufferPool>(new IoBufferPool(std::move(memory), buffer_bytes, count));
}

IoBufferPool::IoBufferPool(AlignedMemory memory, std::size_t buffer_bytes, std::size_t count)
    : memory_(std::move(memory)), buffer_bytes_(buffer_bytes), count_(count) {
  free_.reserve(count);
  for (std::size_t i = count; i > 0; --i) free_.push_back(memory_.data() + (i - 1) * buffer_bytes);
}

IoBufferPool::~IoBufferPool() {
  PF_CHECK(abandoned_ || free_.size() == count_);
}

IoBuffer IoBufferPool::take() {
  if (free_.empty()) return {};
  std::byte* start = free_.back();
  free_.pop_back();
  return IoBuffer(this, {start, buffer_bytes_});
}

void IoBufferPool::give_back(std::span<std::byte> bytes) {
  free_.push_back(bytes.data());
}

void IoBufferPool::populate(std::size_t buffers) const {
  memory_.populate(std::min(buffers, count_) * buffer_bytes_);
}

void IoBufferPool::abandon() {
  abandoned_ = true;
  memory_.abandon();
}

}  // namespace pageferry
