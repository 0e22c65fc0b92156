// FaultingGuest: a process with guest memory whose pages are missing, and workloads on it that measure themselves from the inside: how long
// each touch of a page took, or how many accesses were done in each stretch of time.
//
// Thread rule: one thread, the benchmark's. Made while nobody else runs (fork).
#pragma once

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "bench/raw_io.h"
#include "pager/page.h"
#include "transport/os/fd.h"

namespace pageferry::bench {

inline constexpr std::size_t kSamplesMax = std::size_t{1} << 17;
inline constexpr std::size_t kStretchesMax = 8192;
inline constexpr Nanoseconds kStretch = Milliseconds(5);

enum class Workload : std::uint32_t {
  one_touch,       // of page `first`
  random_touches,  // one page in each stretch of 64, in random order
  zipf,            // `accesses` pages, some much more often than others, with work in between
};

struct Orders {
  Workload workload = Workload::one_touch;
  std::uint64_t first = 0;
  std::uint64_t accesses = 0;
  std::uint64_t seed = 1;
  std::uint64_t work_ns = 0;  // after each access
};

// What both processes see.
struct Seen {
  std::atomic<std::uint64_t> samples{0};
  std::array<std::uint32_t, kSamplesMax> touch_ns{};
  std::array<std::uint32_t, kStretchesMax> accesses{};  // done in each stretch of time
  std::uint64_t stretches = 0;                          // that were completed
  std::atomic<bool> stop{false};
};

class FaultingGuest {
 public:
  explicit FaultingGuest(std::uint64_t bytes) : bytes_(bytes) {
    void* const shared =
        ::mmap(nullptr, sizeof(Seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    PF_CHECK(shared != MAP_FAILED);
    seen_ = new (shared) Seen;
    std::array<int, 2> ends{};
    PF_CHECK(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) == 0);
    ours_.reset(ends[0]);
    UniqueFd its(ends[1]);
    pid_ = ::fork();
    if (pid_ == 0) {
      ours_.reset();
      live(its.get());
    }
    its.reset();
    std::array<std::uint64_t, 2> hello{};  // address, number of the descriptor in the guest
    PF_CHECK(::recv(ours_.get(), hello.data(), sizeof hello, 0) == sizeof hello);
    address_ = hello[0];
    process_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    userfault_.reset(static_cast<int>(
        ::syscall(SYS_pidfd_getfd, process_.get(), static_cast<int>(hello[1]), 0)));
    PF_CHECK(userfault_.valid());
  }
  ~FaultingGuest() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(seen_, sizeof(Seen));
  }
  FaultingGuest(const FaultingGuest&) = delete;
  FaultingGuest& operator=(const FaultingGuest&) = delete;

  void begin(const Orders& orders) {
    PF_CHECK(::send(ours_.get(), &orders, sizeof orders, 0) == sizeof orders);
  }
  // Returns when the workload has ended.
  void wait() {
    char done = 0;
    PF_CHECK(::recv(ours_.get(), &done, 1, 0) == 1);
  }
  int done_fd() const { return ours_.get(); }
  UniqueFd userfault() const { return UniqueFd(::dup(userfault_.get())); }
  std::uint64_t address() const { return address_; }
  pid_t pid() const { return pid_; }
  Seen& seen() const { return *seen_; }

 private:
  static std::uint64_t now_ns() {
    return static_cast<std::uint64_t>(MonotonicClock().now().count());
  }
  static void work(std::uint64_t ns) {
    const std::uint64_t until = now_ns() + ns;
    while (now_ns() < until) {
    }
  }

  [[noreturn]] void live(int socket) {
    void* const at = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    PF_CHECK(at != MAP_FAILED);
    auto* const memory = static_cast<volatile unsigned char*>(at);
    // The machine's own host may have to find memory for what was never used: not while it is measured.
    for (std::uint64_t byte = 0; byte < bytes_; byte += kPageSizeBytes) memory[byte] = 1;
    ::madvise(at, bytes_, MADV_DONTNEED);
    const int fd =
        static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
    uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
    PF_CHECK(fd >= 0 && ::ioctl(fd, UFFDIO_API, &api) == 0);
    uffdio_register area{.range = {.start = reinterpret_cast<std::uintptr_t>(at), .len = bytes_},
                         .mode = UFFDIO_REGISTER_MODE_MISSING,
                         .ioctls = 0};
    PF_CHECK(::ioctl(fd, UFFDIO_REGISTER, &area) == 0);
    const std::array<std::uint64_t, 2> hello{reinterpret_cast<std::uintptr_t>(at),
                                             static_cast<std::uint64_t>(fd)};
    ::send(socket, hello.data(), sizeof hello, 0);
    Orders orders;
    while (::recv(socket, &orders, sizeof orders, 0) == sizeof orders) {
      obey(orders, memory);
      ::send(socket, "", 1, 0);
    }
    ::_exit(0);
  }

  void obey(const Orders& orders, volatile unsigned char* memory) {
    if (orders.workload == Workload::one_touch) {
      static_cast<void>(memory[bytes_of_pages(orders.first)]);
    } else if (orders.workload == Workload::random_touches) {
      touch_at_random(orders, memory);
    } else {
      access_by_zipf(orders, memory);
    }
  }

  void touch_at_random(const Orders& orders, volatile unsigned char* memory) {
    constexpr std::uint64_t kApartPages = 64;
    std::mt19937_64 random(orders.seed);
    std::vector<std::uint64_t> pages;
    for (std::uint64_t page = 0; page + kApartPages <= pages_of_bytes(bytes_);
         page += kApartPages) {
      pages.push_back(page + random() % kApartPages);
    }
    std::shuffle(pages.begin(), pages.end(), random);
    seen_->samples = 0;
    for (const std::uint64_t page : pages) {
      if (seen_->stop || seen_->samples == kSamplesMax) return;
      const std::uint64_t before = now_ns();
      static_cast<void>(memory[bytes_of_pages(page)]);
      seen_->touch_ns[seen_->samples] = static_cast<std::uint32_t>(now_ns() - before);
      ++seen_->samples;
    }
  }

  // Ranks by 1 / rank^0.99, as the YCSB benchmark has them, spread over the guest by a shuffle that does not depend on the seed.
  void access_by_zipf(const Orders& orders, volatile unsigned char* memory) {
    const std::uint64_t pages = pages_of_bytes(bytes_);
    std::vector<double> upto(pages);
    double sum = 0;
    for (std::uint64_t rank = 0; rank < pages; ++rank) {
      upto[rank] = sum += 1 / std::pow(static_cast<double>(rank + 1), 0.99);
    }
    std::vector<std::uint32_t> place(pages);
    std::iota(place.begin(), place.end(), 0U);
    std::shuffle(place.begin(), place.end(), std::mt19937_64(7));
    std::mt19937_64 random(orders.seed);
    std::uniform_real_distribution<double> uniform(0, sum);
    std::vector<std::uint32_t> sequence(orders.accesses);
    for (std::uint32_t& page : sequence) {
      const auto rank = std::lower_bound(upto.begin(), upto.end(), uniform(random)) - upto.begin();
      page = place[static_cast<std::size_t>(rank)];
    }
    seen_->accesses.fill(0);
    const std::uint64_t start = now_ns();
    std::uint64_t stretch = 0;
    for (const std::uint32_t page : sequence) {
      static_cast<void>(memory[bytes_of_pages(page)]);
      work(orders.work_ns);
      stretch = (now_ns() - start) / static_cast<std::uint64_t>(kStretch.count());
      if (stretch >= kStretchesMax) break;
      ++seen_->accesses[stretch];
    }
    seen_->stretches = stretch;
  }

  std::uint64_t bytes_;
  Seen* seen_ = nullptr;
  pid_t pid_ = -1;
  UniqueFd ours_;
  UniqueFd process_;
  UniqueFd userfault_;
  std::uint64_t address_ = 0;
};

}  // namespace pageferry::bench
