// ChildVmm: a process that plays a VMM: it has guest memory whose pages are missing, keeps its userfaultfd open, and touches, checks and
// removes pages when it is told to. It alone judges what it finds: page p must hold content_of(p, 1), or zeros where expected_zero(p).
//
// Thread rule: one thread, the test's. Made while the test has one thread (fork).
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <array>
#include <cstring>
#include <optional>

#include "fakes/page_content.h"
#include "fakes/userfault_memory.h"
#include "pager/userfault_page_in.h"

namespace pageferry::testing_support {

enum class GuestTask : std::uint8_t { check, check_zero, remove, make_hole };

struct GuestAnswer {
  static constexpr std::uint64_t kNone = ~std::uint64_t{0};
  std::uint64_t wrong_pages = 0;
  std::uint64_t first_wrong = kNone;
  std::uint64_t bus_errors = 0;  // pages whose touch gave SIGBUS
  std::uint64_t last_bus_error = kNone;
};

inline bool expected_zero(std::uint64_t page) {
  return page % 7 == 0;
}

class ChildVmm {
 public:
  ChildVmm(std::uint64_t pages, Backing backing, std::uint64_t features = UFFD_FEATURE_EVENT_REMOVE)
      : pages_(pages) {
    std::array<int, 2> ends{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
    ours_.reset(ends[0]);
    UniqueFd its(ends[1]);
    pid_ = ::fork();
    if (pid_ == 0) {
      ours_.reset();
      live(std::move(its), pages, backing, features);
    }
    its.reset();
    process_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    receive_userfault();
  }
  ~ChildVmm() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  ChildVmm(const ChildVmm&) = delete;
  ChildVmm& operator=(const ChildVmm&) = delete;

  UserfaultVmm vmm() const {
    UserfaultVmm vmm{.userfault = duplicate(userfault_),
                     .block_addresses = {address_},
                     .process_fd = process_.get()};
    vmm.tables.emplace(tables_of(pid_));
    return vmm;
  }
  std::uint64_t pages() const { return pages_; }
  void end() { ::kill(pid_, SIGKILL); }

  void begin(GuestTask task, PageRun run) const {
    const Message message{.task = task, .first = raw(run.first), .pages = run.pages};
    EXPECT_EQ(::send(ours_.get(), &message, sizeof message, 0), sizeof message);
  }
  bool has_answered() const { return answer_within(0); }
  // nullopt: none within 30 s.
  std::optional<GuestAnswer> answer() const {
    if (!answer_within(30'000)) return std::nullopt;
    GuestAnswer answer;
    if (::recv(ours_.get(), &answer, sizeof answer, 0) != sizeof answer) return std::nullopt;
    return answer;
  }
  void expect_right(GuestTask task, PageRun run) const {
    begin(task, run);
    const auto found = answer();
    ASSERT_TRUE(found) << "the guest hangs";
    EXPECT_EQ(found->wrong_pages, 0U) << "the first is page " << found->first_wrong;
    EXPECT_EQ(found->bus_errors, 0U) << "the last is page " << found->last_bus_error;
  }

 private:
  struct Message {
    GuestTask task = GuestTask::check;
    std::uint64_t first = 0;
    std::uint64_t pages = 0;
  };

  bool answer_within(int limit_ms) const {
    pollfd entry{.fd = ours_.get(), .events = POLLIN, .revents = 0};
    return ::poll(&entry, 1, limit_ms) == 1;
  }
  void receive_userfault() {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    iovec data{.iov_base = &address_, .iov_len = sizeof address_};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    EXPECT_EQ(::recvmsg(ours_.get(), &message, MSG_CMSG_CLOEXEC), sizeof address_);
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    userfault_.reset(fd);
  }

  // --- the child ----------------------------------------------------------------------------------
  static void send_userfault(int socket, int fd, std::uint64_t address) {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    iovec data{.iov_base = &address, .iov_len = sizeof address};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
    ::sendmsg(socket, &message, 0);
  }

  static inline sigjmp_buf after_bus_error_;
  static void on_bus_error(int /*signal*/) { siglongjmp(after_bus_error_, 1); }

  static void check_page(const UserfaultMemory& memory, std::uint64_t page, bool zero,
                         GuestAnswer& answer) {
    static PageArray expected;
    expected = zero ? PageArray{} : content_of(page, 1);
    if (sigsetjmp(after_bus_error_, 1) != 0) {
      ++answer.bus_errors;
      answer.last_bus_error = page;
      return;
    }
    if (std::memcmp(memory.page(page), expected.data(), expected.size()) == 0) return;
    if (answer.wrong_pages++ == 0) answer.first_wrong = page;
  }

  [[noreturn]] static void live(UniqueFd socket, std::uint64_t pages, Backing backing,
                                std::uint64_t features) {
    ::signal(SIGBUS, on_bus_error);
    UserfaultMemory memory(bytes_of_pages(pages), backing);
    const UniqueFd userfault = open_userfault(Greeting::done, features);
    register_missing(userfault, memory);
    send_userfault(socket.get(), userfault.get(), memory.address());
    Message message;
    while (::recv(socket.get(), &message, sizeof message, 0) == sizeof message) {
      GuestAnswer answer;
      const std::uint64_t end = message.first + message.pages;
      if (message.task == GuestTask::remove) {
        const int advice = backing == Backing::memfd ? MADV_REMOVE : MADV_DONTNEED;
        ::madvise(memory.page(message.first), bytes_of_pages(message.pages), advice);
      } else if (message.task == GuestTask::make_hole) {
        ::fallocate(memory.file(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(bytes_of_pages(message.first)),
                    static_cast<off_t>(bytes_of_pages(message.pages)));
      } else {
        for (std::uint64_t page = message.first; page < end; ++page) {
          const bool zero = message.task == GuestTask::check_zero || expected_zero(page);
          check_page(memory, page, zero, answer);
        }
      }
      ::send(socket.get(), &answer, sizeof answer, 0);
    }
    ::_exit(0);
  }

  std::uint64_t pages_;
  pid_t pid_ = -1;
  UniqueFd ours_;
  UniqueFd process_;
  UniqueFd userfault_;
  std::uint64_t address_ = 0;
};

}  // namespace pageferry::testing_support
