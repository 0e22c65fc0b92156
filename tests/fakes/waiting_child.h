// WaitingChild: a forked child of the test that opens what it is told to, says its number, and then waits until it is killed.
// It plays a VMM: another process with descriptors and memory of its own.
//
// Thread rule: one thread, and no other when it is made (the child goes on in a copy of this process).
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>

#include "transport/os/fd.h"

namespace pageferry::testing_support {

class WaitingChild {
 public:
  // `open`: run in the child; returns a number that number() gives here, -1 for a failure.
  template <typename Open>
  explicit WaitingChild(Open open) {
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const UniqueFd read_end(ends[0]);
    UniqueFd write_end(ends[1]);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int number = open();
      if (::write(write_end.get(), &number, sizeof number) != sizeof number) ::_exit(1);
      for (;;) ::pause();
    }
    write_end.reset();
    EXPECT_EQ(::read(read_end.get(), &number_, sizeof number_),
              static_cast<ssize_t>(sizeof number_));
    EXPECT_GE(number_, 0) << "the child could not open what it should";
    pidfd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    EXPECT_TRUE(pidfd_.valid());
  }
  ~WaitingChild() { end(); }
  WaitingChild(const WaitingChild&) = delete;
  WaitingChild& operator=(const WaitingChild&) = delete;

  pid_t pid() const { return pid_; }
  int number() const { return number_; }
  const UniqueFd& pidfd() const { return pidfd_; }
  // Kills it and waits until it is gone.
  void end() {
    if (std::exchange(ended_, true)) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

 private:
  pid_t pid_ = -1;
  int number_ = -1;
  bool ended_ = false;
  UniqueFd pidfd_;
};

// What `ask` returns (0..255) in a child that is no privileged user: nobody, when the test is run by root.
template <typename Ask>
int ask_as_nobody(Ask ask) {
  constexpr uid_t kNobody = 65534;
  const pid_t child = ::fork();
  if (child == 0) {
    if (::geteuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0) ::_exit(255);
    ::_exit(ask());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

// A process that such a child may not look into: root's.
inline pid_t process_of_root() {
  return ::geteuid() == 0 ? ::getpid() : 1;
}

}  // namespace pageferry::testing_support
