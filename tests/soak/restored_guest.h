// RestoredGuest: a process whose memory is being restored, and which gives its pagers a hard time: threads that read, check, write and
// remove
// pages at random. Each page belongs to one thread, so that thread knows what it must hold; it alone judges.
//
//   page p at first: content_of(p, 1), or zeros where p % 7 == 0     written: content_of(p, version)     removed: zeros
//
// What both sides see lies in Shared: the guest reports a removal there before it removes.
#pragma once

#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "fakes/page_content.h"
#include "fakes/userfault_memory.h"
#include "transport/os/fd.h"

namespace pageferry::testing_support {

inline constexpr std::uint64_t kGuestPages = 4096;  // 16 MiB

struct Shared {
  std::array<std::atomic<std::uint64_t>, kGuestPages / 64> removed{};
  std::atomic<std::uint64_t> reports{0};
  enum class Phase : std::uint32_t { run, storm, finish };
  std::atomic<Phase> phase{Phase::run};
  // the guest's figures
  std::atomic<std::uint64_t> checks{0}, writes{0}, removals{0}, wrong{0}, first_wrong{0}, ended{0};
  // the pagers'
  std::atomic<std::uint64_t> storage_faults{0}, pages_bad{0};

  void report_removed(std::uint64_t page) {
    removed[page / 64].fetch_or(std::uint64_t{1} << (page % 64));
    reports.fetch_add(1);
  }
};

inline constexpr std::uint64_t kGuestThreads = 3;

class RestoredGuest {
 public:
  RestoredGuest(Shared& shared, Backing backing, std::uint64_t seed) {
    std::array<int, 2> ends{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
    const UniqueFd ours(ends[0]);
    UniqueFd its(ends[1]);
    pid_ = ::fork();
    if (pid_ == 0) live(shared, backing, seed, its.get());
    its.reset();
    std::array<std::uint64_t, 2> hello{};  // address, number of the descriptor in the guest
    EXPECT_EQ(::recv(ours.get(), hello.data(), sizeof hello, 0), sizeof hello);
    address_ = hello[0];
    process_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    userfault_.reset(static_cast<int>(
        ::syscall(SYS_pidfd_getfd, process_.get(), static_cast<int>(hello[1]), 0)));
    EXPECT_TRUE(userfault_.valid()) << std::strerror(errno);
  }
  ~RestoredGuest() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  RestoredGuest(const RestoredGuest&) = delete;
  RestoredGuest& operator=(const RestoredGuest&) = delete;

  pid_t pid() const { return pid_; }
  int process_fd() const { return process_.get(); }
  std::uint64_t address() const { return address_; }
  UniqueFd userfault() const { return duplicate(userfault_); }
  // False: it did not within that time.
  bool ends_within(int limit_ms) const {
    pollfd entry{.fd = process_.get(), .events = POLLIN, .revents = 0};
    return ::poll(&entry, 1, limit_ms) == 1;
  }

 private:
  struct Thread {
    Shared* shared;
    const UserfaultMemory* memory;
    int remove_advice;
    std::uint64_t number;
    std::mt19937_64 random;
    // 0: zeros, else the version. Of this thread's pages.
    std::vector<std::uint64_t> expected;

    std::uint64_t any_page() {
      const std::uint64_t row = random() % (kGuestPages / kGuestThreads);
      return row * kGuestThreads + number;
    }
    void check(std::uint64_t page) {
      ++shared->checks;
      const std::uint64_t version = expected[page];
      const PageArray bytes = version == 0 ? PageArray{} : content_of(page, version);
      if (std::memcmp(memory->page(page), bytes.data(), bytes.size()) == 0) return;
      if (shared->wrong++ == 0) shared->first_wrong = page;
    }
    void write(std::uint64_t page) {
      ++shared->writes;
      const std::uint64_t version = 2 + random() % 1000;
      const PageArray bytes = content_of(page, version);
      std::memcpy(memory->page(page), bytes.data(), bytes.size());
      expected[page] = version;
    }
    void remove(std::uint64_t page) {
      ++shared->removals;
      shared->report_removed(page);
      ::madvise(memory->page(page), kPageSizeBytes, remove_advice);
      expected[page] = 0;
    }
    void run() {
      for (;;) {
        const Shared::Phase phase = shared->phase;
        if (phase == Shared::Phase::finish) break;
        const std::uint64_t page = any_page();
        const std::uint64_t chance = random() % 100;
        if (chance < (phase == Shared::Phase::storm ? 80 : 3)) {
          remove(page);
        } else if (chance < 90) {
          check(page);
        } else {
          write(page);
        }
        std::this_thread::yield();
      }
      for (std::uint64_t page = number; page < kGuestPages; page += kGuestThreads) check(page);
      ++shared->ended;
    }
  };

  [[noreturn]] static void live(Shared& shared, Backing backing, std::uint64_t seed, int socket) {
    const UserfaultMemory memory(bytes_of_pages(kGuestPages), backing);
    const UniqueFd userfault = open_ballooning_userfault();
    register_missing(userfault, memory);
    const std::array<std::uint64_t, 2> hello{memory.address(),
                                             static_cast<std::uint64_t>(userfault.get())};
    ::send(socket, hello.data(), sizeof hello, 0);
    std::vector<std::jthread> threads;
    for (std::uint64_t number = 0; number < kGuestThreads; ++number) {
      threads.emplace_back([&, number] {
        Thread thread{.shared = &shared,
                      .memory = &memory,
                      .remove_advice = backing == Backing::memfd ? MADV_REMOVE : MADV_DONTNEED,
                      .number = number,
                      .random = std::mt19937_64(seed * kGuestThreads + number),
                      .expected = std::vector<std::uint64_t>(kGuestPages, 1)};
        for (std::uint64_t page = 0; page < kGuestPages; page += 7) thread.expected[page] = 0;
        thread.run();
      });
    }
    threads.clear();
    ::_exit(0);
  }

  pid_t pid_ = -1;
  UniqueFd process_;
  UniqueFd userfault_;
  std::uint64_t address_ = 0;
};

}  // namespace pageferry::testing_support
