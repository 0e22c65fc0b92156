// StorageFile: one file on the store, read and written asynchronously in aligned pieces. AioFile is
// the real one; fakes and fault injection implement or wrap the same interface. Knows no page and
// no format.
//
// The public methods check alignment, bounds and state, then call the *_impl of the implementation.
// Every operation that may wait for the store is submitted with a tag and reported once by reap();
// a submit that returned an error is never reported. Completions come in any order: two writes to
// one place must not be in flight at once.
//
// A sync that failed makes the file scrap: what reached the store is unknown (the kernel may have
// dropped dirty pages and will say success the next time). From then on every call returns that
// first error; nothing is ever retried on it.
//
// Thread rule: one thread at a time. Lifetime: the memory of a submitted read or write stays valid
// and untouched until its completion is reaped, or for ever when the file is destroyed first (see
// AioFile).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "transport/os/error.h"

namespace pageferry {

// Who waits for it. Only a hint to the I/O scheduler; the order of submission stays the caller's
// duty.
enum class IoPriority : std::uint8_t {
  demand,      // somebody is stopped until it is there: best-effort 0
  normal,      // best-effort 4
  background,  // prefetch: best-effort 7
};

enum class IoKind : std::uint8_t { read, write, sync, allocate };

struct IoDone {
  std::uint64_t tag = 0;
  IoKind kind = IoKind::read;
  Result<void> outcome;  // success: every byte was transferred (or is durable, for a sync)
};

// Largest offset that anything here may touch: 256 TiB.
inline constexpr std::uint64_t kFileBytesMax = std::uint64_t{1} << 48;
// Largest single read or write.
inline constexpr std::size_t kIoBytesMax = std::size_t{64} << 20;

class StorageFile {
 public:
  StorageFile(const StorageFile&) = delete;
  StorageFile& operator=(const StorageFile&) = delete;
  virtual ~StorageFile() = default;

  // For messages: the path or what stands for it.
  const std::string& name() const { return name_; }
  // Every offset, length and memory address must be a multiple of this.
  std::size_t alignment_bytes() const { return alignment_bytes_; }
  unsigned queue_depth() const { return queue_depth_; }
  unsigned in_flight() const { return in_flight_; }

  // Errc::busy: queue_depth operations are in flight; reap first. Errc::invalid: alignment or
  // bounds.
  Result<void> submit_read(std::span<std::byte> to, std::uint64_t offset, std::uint64_t tag,
                           IoPriority priority);
  Result<void> submit_write(std::span<const std::byte> from, std::uint64_t offset,
                            std::uint64_t tag, IoPriority priority);
  // fdatasync of every write that was reaped before; writes in flight may or may not be covered.
  Result<void> submit_sync(std::uint64_t tag);
  // Reserves space, and grows the file to offset + length. A file system that cannot reserve says
  // success. Errc::no_space is the useful failure.
  Result<void> submit_allocate(std::uint64_t offset, std::uint64_t length, std::uint64_t tag);

  // What is submitted between the two may be held back until end_batch() and then go to the kernel in
  // one call: many small writes cost less. What fails there is reported by reap(). Nothing is reaped
  // inside a batch, and batches do not nest.
  void begin_batch() { begin_batch_impl(); }
  void end_batch() { end_batch_impl(); }

  // Appends what finished to `done`; never blocks.
  void reap(std::vector<IoDone>& done);
  // Readable when reap() may have something; poll(2) it, never read it.
  int completion_fd() const { return completion_fd_impl(); }

  // Size in bytes now. May block for as long as a stat of the store does.
  Result<std::uint64_t> size() const { return size_impl(); }

  // Why the file is scrap, or nullopt.
  const std::optional<Error>& scrap() const { return scrap_; }

 protected:
  StorageFile(std::string name, std::size_t alignment_bytes, unsigned queue_depth)
      : name_(std::move(name)), alignment_bytes_(alignment_bytes), queue_depth_(queue_depth) {}

  virtual Result<void> submit_read_impl(std::span<std::byte> to, std::uint64_t offset,
                                        std::uint64_t tag, IoPriority priority) = 0;
  virtual Result<void> submit_write_impl(std::span<const std::byte> from, std::uint64_t offset,
                                         std::uint64_t tag, IoPriority priority) = 0;
  virtual Result<void> submit_sync_impl(std::uint64_t tag) = 0;
  virtual Result<void> submit_allocate_impl(std::uint64_t offset, std::uint64_t length,
                                            std::uint64_t tag) = 0;
  virtual void begin_batch_impl() {}
  virtual void end_batch_impl() {}
  virtual void reap_impl(std::vector<IoDone>& done) = 0;
  virtual int completion_fd_impl() const = 0;
  virtual Result<std::uint64_t> size_impl() const = 0;

 private:
  Result<void> check_state() const;
  Result<void> check_span(const std::byte* data, std::size_t bytes, std::uint64_t offset) const;

  std::string name_;
  std::size_t alignment_bytes_;
  unsigned queue_depth_;
  unsigned in_flight_ = 0;
  std::optional<Error> scrap_;
};

}  // namespace pageferry
