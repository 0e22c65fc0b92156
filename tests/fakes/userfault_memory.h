// UserfaultMemory: memory of the test process whose missing pages are somebody's to bring, as a destination QEMU's are; and
// threads that touch it.
//
// Faults of system calls are not handled (UFFD_USER_MODE_ONLY), so that the tests need no privilege.
//
// Thread rule: one thread, the test's; the threads that touch are its own.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <future>
#include <thread>
#include <utility>

#include "pager/page.h"
#include "transport/os/fd.h"
#include "transport/os/page_tables.h"

namespace pageferry::testing_support {

enum class Backing : std::uint8_t { anonymous, memfd, transparent_huge_pages, huge_pages };

class UserfaultMemory {
 public:
  explicit UserfaultMemory(std::uint64_t bytes, Backing backing = Backing::anonymous)
      : bytes_(bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (backing == Backing::huge_pages) flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
    if (backing == Backing::memfd) {
      flags = MAP_SHARED;
      file_.reset(static_cast<int>(::memfd_create("guest", MFD_CLOEXEC)));
      EXPECT_EQ(::ftruncate(file_.get(), static_cast<off_t>(bytes)), 0);
    }
    void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, file_.get(), 0);
    EXPECT_NE(at, MAP_FAILED) << std::strerror(errno);
    data_ = static_cast<std::byte*>(at);
    if (backing == Backing::transparent_huge_pages) {
      EXPECT_EQ(::madvise(data_, bytes_, MADV_HUGEPAGE), 0) << std::strerror(errno);
    }
  }
  ~UserfaultMemory() { ::munmap(data_, bytes_); }
  UserfaultMemory(const UserfaultMemory&) = delete;
  UserfaultMemory& operator=(const UserfaultMemory&) = delete;

  std::byte* data() const { return data_; }
  std::byte* page(std::uint64_t index) const { return data_ + bytes_of_pages(index); }
  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t address() const { return reinterpret_cast<std::uintptr_t>(data_); }
  // Of a memfd.
  int file() const { return file_.get(); }

 private:
  std::uint64_t bytes_;
  UniqueFd file_;
  std::byte* data_ = nullptr;
};

// A userfaultfd of this process, as QEMU opens one; or without its UFFDIO_API.
enum class Greeting : std::uint8_t { done, missing };
inline bool greet(int userfault, std::uint64_t features = 0) {
  uffdio_api api{.api = UFFD_API, .features = features, .ioctls = 0};
  return ::ioctl(userfault, UFFDIO_API, &api) == 0;
}
inline UniqueFd open_userfault(Greeting greeting = Greeting::done, std::uint64_t features = 0) {
  UniqueFd userfault(
      static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  EXPECT_TRUE(userfault.valid()) << std::strerror(errno);
  const bool greeted = greeting == Greeting::missing || greet(userfault.get(), features);
  EXPECT_TRUE(greeted) << std::strerror(errno);
  return userfault;
}
// One that also tells what its owner removes, as Firecracker opens one.
inline UniqueFd open_ballooning_userfault() {
  return open_userfault(Greeting::done, UFFD_FEATURE_EVENT_REMOVE);
}
inline UniqueFd duplicate(const UniqueFd& fd) {
  return UniqueFd(::dup(fd.get()));
}

// Of a process; by default this one.
inline PageTables tables_of(int pid = ::getpid()) {
  auto tables = PageTables::open(pid);
  EXPECT_TRUE(tables) << tables.error().message;
  return std::move(*tables);
}

inline void register_missing(const UniqueFd& userfault, const UserfaultMemory& memory) {
  uffdio_register request{.range = {.start = memory.address(), .len = memory.bytes()},
                          .mode = UFFDIO_REGISTER_MODE_MISSING,
                          .ioctls = 0};
  EXPECT_EQ(::ioctl(userfault.get(), UFFDIO_REGISTER, &request), 0) << std::strerror(errno);
}

// Whether somebody's fault can be read, within 10 s.
inline bool fault_comes(int userfault) {
  pollfd entry{.fd = userfault, .events = POLLIN, .revents = 0};
  return ::poll(&entry, 1, 10'000) == 1 && (entry.revents & POLLIN) != 0;
}

// A thread that gives memory back to the host, and waits until somebody has heard of it.
class Remover {
 public:
  Remover(const UserfaultMemory& memory, std::uint64_t page, std::uint64_t pages)
      : thread_([at = memory.page(page), pages] {
          EXPECT_EQ(::madvise(at, bytes_of_pages(pages), MADV_DONTNEED), 0) << std::strerror(errno);
        }) {}
  void wait() { thread_.join(); }

 private:
  std::jthread thread_;
};

// A thread that reads one byte of the memory, and waits for it if it is missing. Before it is destroyed, its page must come
// or the last userfaultfd be closed.
class Toucher {
 public:
  explicit Toucher(const std::byte* at) {
    std::promise<std::byte> promise;
    seen_ = promise.get_future();
    thread_ = std::jthread([at, promise = std::move(promise)]() mutable {
      const std::byte seen = *static_cast<const volatile std::byte*>(at);
      promise.set_value(seen);
    });
  }
  bool has_seen() const {
    return seen_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }
  // The byte; a failure when the page does not come within 10 s.
  std::byte wait() {
    const bool came = seen_.wait_for(std::chrono::seconds(10)) == std::future_status::ready;
    EXPECT_TRUE(came) << "the page does not come";
    return came ? seen_.get() : std::byte{0xee};
  }

 private:
  std::future<std::byte> seen_;
  std::jthread thread_;
};

}  // namespace pageferry::testing_support
