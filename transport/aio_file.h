// AioFile: a StorageFile over libaio and O_DIRECT. Where the file system has no O_DIRECT (tmpfs,
// some FUSE) it works through the page cache and says so in io_mode().
//
// Every file is named by a directory descriptor and one path component; symlinks are never
// followed, new files are exclusive and 0600.
//
// Closing: the destructor waits up to AioOptions::close_wait for operations in flight. If the store
// hangs longer, the kernel's aio context is leaked, because io_destroy(2) would wait for ever; the
// kernel keeps the file and the pages of the buffers alive by itself, but the *addresses* must not
// be reused: the owner of the buffers abandons them (IoBufferPool::abandon) when in_flight() was
// not 0. Without operations in flight the context is destroyed in a thread beside: the kernel takes
// 30 ms for it. A process with such operations cannot finish exiting before the device answers: what must
// happen first (closing a VMM's socket) is done before exit.
//
// Thread rule: as StorageFile. io_submit(2), fallocate(2) and fstat(2) may block on a store that
// hangs: see ThreadedFile.
#pragma once

#include <memory>
#include <string_view>

#include "transport/os/clock.h"
#include "transport/os/fd.h"
#include "transport/storage_file.h"

namespace pageferry {

enum class IoMode : std::uint8_t { direct, buffered };

struct AioOptions {
  unsigned queue_depth = 128;     // operations in flight, 1..kAioQueueDepthMax
  Milliseconds close_wait{2000};  // how long the destructor waits for them
};
inline constexpr unsigned kAioQueueDepthMax = 4096;

class AioFile final : public StorageFile {
 public:
  // A new, empty file; Errc::exists when the name is taken, also by a symlink. `where` is the
  // directory's path, for messages.
  static Result<std::unique_ptr<AioFile>> create(int directory_fd, std::string_view name,
                                                 std::string_view where, AioOptions options);
  // An existing regular file, only to read; what the page cache holds of it is dropped first.
  // Errc::not_found, Errc::invalid (symlink, or not a regular file).
  static Result<std::unique_ptr<AioFile>> open(int directory_fd, std::string_view name,
                                               std::string_view where, AioOptions options);
  ~AioFile() override;

  IoMode io_mode() const;
  // One line for the user when io_mode() is buffered, else empty.
  const std::string& buffered_reason() const;

 protected:
  Result<void> submit_read_impl(std::span<std::byte> to, std::uint64_t offset, std::uint64_t tag,
                                IoPriority priority) override;
  Result<void> submit_write_impl(std::span<const std::byte> from, std::uint64_t offset,
                                 std::uint64_t tag, IoPriority priority) override;
  Result<void> submit_sync_impl(std::uint64_t tag) override;
  Result<void> submit_allocate_impl(std::uint64_t offset, std::uint64_t length,
                                    std::uint64_t tag) override;
  void begin_batch_impl() override;
  void end_batch_impl() override;
  void reap_impl(std::vector<IoDone>& done) override;
  int completion_fd_impl() const override;
  Result<std::uint64_t> size_impl() const override;

 private:
  struct State;  // libaio's types stay in the .cc
  AioFile(std::string name, std::size_t alignment_bytes, unsigned queue_depth,
          std::unique_ptr<State> state);
  static Result<std::unique_ptr<AioFile>> over(UniqueFd fd, std::string path, AioOptions options);

  std::unique_ptr<State> state_;
};

// Message for a failed io_setup(2): EAGAIN means that fs.aio-max-nr is used up; names its value,
// what is in use and what was wanted.
Unexpected aio_setup_error(int error_number, unsigned wanted);

}  // namespace pageferry
