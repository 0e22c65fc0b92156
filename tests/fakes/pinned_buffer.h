// PinnedBuffer: memory that the kernel has pinned for long and writes to by its physical pages, as devices do by DMA: a buffer
// registered with an io_uring, and READ_FIXED into it. Bare system calls: the product has no io_uring.
//
// Thread rule: one thread, the test's. Lifetime: the memory outlives it.
#pragma once

#include <gtest/gtest.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "transport/os/fd.h"

namespace pageferry::testing_support {

class PinnedBuffer {
 public:
  // Pinned from here on.
  PinnedBuffer(std::byte* at, std::size_t bytes) : at_(at), bytes_(bytes) {
    ring_.reset(static_cast<int>(::syscall(SYS_io_uring_setup, 1, &parameters_)));
    EXPECT_TRUE(ring_.valid()) << "io_uring_setup: " << std::strerror(errno);
    EXPECT_NE(parameters_.features & IORING_FEAT_SINGLE_MMAP, 0U);
    queue_bytes_ = std::max<std::size_t>(
        parameters_.sq_off.array + parameters_.sq_entries * sizeof(std::uint32_t),
        parameters_.cq_off.cqes + parameters_.cq_entries * sizeof(io_uring_cqe));
    queue_ = static_cast<std::byte*>(map(queue_bytes_, IORING_OFF_SQ_RING));
    entries_ = static_cast<io_uring_sqe*>(map(sizeof(io_uring_sqe), IORING_OFF_SQES));
    const iovec buffer{.iov_base = at, .iov_len = bytes};
    EXPECT_EQ(::syscall(SYS_io_uring_register, ring_.get(), IORING_REGISTER_BUFFERS, &buffer, 1), 0)
        << std::strerror(errno);
  }
  ~PinnedBuffer() {
    ::munmap(entries_, sizeof(io_uring_sqe));
    ::munmap(queue_, queue_bytes_);
  }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  // Reads the beginning of the file over the buffer, and waits until that is done.
  void fill_from(int file) {
    *entries_ = {};
    entries_->opcode = IORING_OP_READ_FIXED;
    entries_->fd = file;
    entries_->addr = reinterpret_cast<std::uintptr_t>(at_);
    entries_->len = static_cast<std::uint32_t>(bytes_);
    const std::uint32_t tail = number(parameters_.sq_off.tail).load();
    number(parameters_.sq_off.array).store(0);
    number(parameters_.sq_off.tail).store(tail + 1);
    ASSERT_EQ(::syscall(SYS_io_uring_enter, ring_.get(), 1, 1, IORING_ENTER_GETEVENTS, nullptr, 0),
              1)
        << std::strerror(errno);
    const std::uint32_t head = number(parameters_.cq_off.head).load();
    ASSERT_EQ(number(parameters_.cq_off.tail).load(), head + 1);
    io_uring_cqe result;
    std::memcpy(
        &result,
        queue_ + parameters_.cq_off.cqes + (head & (parameters_.cq_entries - 1)) * sizeof result,
        sizeof result);
    number(parameters_.cq_off.head).store(head + 1);
    ASSERT_EQ(result.res, static_cast<int>(bytes_)) << std::strerror(-result.res);
  }

 private:
  void* map(std::size_t bytes, off_t what) const {
    void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                            ring_.get(), what);
    EXPECT_NE(at, MAP_FAILED) << std::strerror(errno);
    return at;
  }
  std::atomic_ref<std::uint32_t> number(std::uint32_t offset) const {
    return std::atomic_ref(*reinterpret_cast<std::uint32_t*>(queue_ + offset));
  }

  std::byte* at_;
  std::size_t bytes_;
  io_uring_params parameters_{};
  UniqueFd ring_;
  std::size_t queue_bytes_ = 0;
  std::byte* queue_ = nullptr;
  io_uring_sqe* entries_ = nullptr;
};

}  // namespace pageferry::testing_support
