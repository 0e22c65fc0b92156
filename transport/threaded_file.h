// ThreadedFile: a StorageFile that uses another one on a thread of its own, so that the caller never enters a system call
// that the store can hold up. Even asynchronous I/O has such calls: io_submit waits for a free request of a stuck device,
// fallocate for the store. With this in between, everything the caller waits for is a poll(2), which a CancelSignal ends.
//
// For the writing side, where a hop between threads (about 20 us) is nothing beside a write. The reading side goes without.
//
// Closing: the destructor waits up to close_wait for the thread to finish; if the store hangs longer, thread and inner file
// are left behind, and clean up by themselves when the store answers. The owner of the buffers abandons them, as with AioFile.
//
// Thread rule: as StorageFile; the inner file is used by the inner thread only. size() asks the inner file directly and may
// block.
#pragma once

#include <memory>
#include <thread>

#include "transport/os/clock.h"
#include "transport/storage_file.h"

namespace pageferry {

class ThreadedFile final : public StorageFile {
 public:
  // Errc::io when there is no descriptor or thread left.
  static Result<std::unique_ptr<ThreadedFile>> over(std::unique_ptr<StorageFile> inner,
                                                    Milliseconds close_wait);
  ~ThreadedFile() override;

 protected:
  Result<void> submit_read_impl(std::span<std::byte> to, std::uint64_t offset, std::uint64_t tag,
                                IoPriority priority) override;
  Result<void> submit_write_impl(std::span<const std::byte> from, std::uint64_t offset,
                                 std::uint64_t tag, IoPriority priority) override;
  Result<void> submit_sync_impl(std::uint64_t tag) override;
  Result<void> submit_allocate_impl(std::uint64_t offset, std::uint64_t length,
                                    std::uint64_t tag) override;
  void reap_impl(std::vector<IoDone>& done) override;
  int completion_fd_impl() const override;
  Result<std::uint64_t> size_impl() const override;

 private:
  struct Shared;  // outlives this object when the store hangs
  ThreadedFile(std::shared_ptr<Shared> shared, Milliseconds close_wait);

  std::shared_ptr<Shared> shared_;
  Milliseconds close_wait_;
  std::thread thread_;
};

}  // namespace pageferry
