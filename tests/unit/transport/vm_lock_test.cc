// VmLock between processes: one holder, freed by death, and taken over only from a process of our
// own program.
#include "transport/vm_lock.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "fakes/scratch_directory.h"

namespace pageferry {
namespace {

namespace fs = std::filesystem;
using testing_support::ScratchDirectory;

constexpr Milliseconds kPatience{200};
constexpr Milliseconds kLongPatience{60'000};

// A child process that takes the lock, reports, and then waits for a signal.
class Holder {
 public:
  enum class OnTerm { dies, ignores };
  Holder(const std::string& run_directory, OnTerm on_term) {
    int ready[2];
    EXPECT_EQ(::pipe(ready), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      if (on_term == OnTerm::ignores) ::signal(SIGTERM, SIG_IGN);
      const auto lock = VmLock::acquire(run_directory, "web-1");
      const char word = lock ? 'y' : 'n';
      if (::write(ready[1], &word, 1) != 1) ::_exit(1);
      while (true) ::pause();
    }
    char word = '?';
    EXPECT_EQ(::read(ready[0], &word, 1), 1);
    EXPECT_EQ(word, 'y');
    ::close(ready[0]);
    ::close(ready[1]);
  }
  ~Holder() {
    if (!reaped_) end(SIGKILL);
  }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;
  pid_t pid() const { return pid_; }
  void send(int signal_number) const { ::kill(pid_, signal_number); }
  // The signal it died of.
  int reap() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    reaped_ = true;
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  }
  void end(int signal_number) {
    send(signal_number);
    reap();
  }

 private:
  pid_t pid_ = -1;
  bool reaped_ = false;
};

class VmLockTest : public ::testing::Test {
 protected:
  ScratchDirectory scratch_;
  std::string run_ = scratch_.file("run");
  MonotonicClock clock_;
};

// QEMUs of other users have their directories below it.
TEST(VmLock, DirectoryCanBePassedAndNotRead) {
  const ScratchDirectory scratch;
  const auto lock = VmLock::acquire(scratch.file("run"), "web-1");
  ASSERT_TRUE(lock) << lock.error().message;
  EXPECT_EQ(fs::status(scratch.file("run")).permissions(), fs::perms{0711});
}

TEST_F(VmLockTest, SecondTakerIsToldWhoHoldsIt) {
  const auto first = VmLock::acquire(run_, "web-1");
  ASSERT_TRUE(first) << first.error().message;
  const auto second = VmLock::acquire(run_, "web-1");
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::busy);
  EXPECT_NE(second.error().message.find(std::to_string(::getpid())), std::string::npos);
}

TEST_F(VmLockTest, VmsDoNotDisturbEachOther) {
  const auto first = VmLock::acquire(run_, "web-1");
  EXPECT_TRUE(VmLock::acquire(run_, "web-2"));
}

TEST_F(VmLockTest, IsFreeAgainAfterItsHolder) {
  { const auto first = VmLock::acquire(run_, "web-1"); }
  EXPECT_TRUE(VmLock::acquire(run_, "web-1"));
}

TEST_F(VmLockTest, IsFreedByAKill) {
  Holder holder(run_, Holder::OnTerm::dies);
  EXPECT_FALSE(VmLock::acquire(run_, "web-1"));
  holder.end(SIGKILL);
  EXPECT_TRUE(VmLock::acquire(run_, "web-1"));
}

TEST_F(VmLockTest, HolderIsNamedWhileItLives) {
  EXPECT_EQ(*VmLock::holder(run_, "web-1"), std::nullopt);
  Holder holder(run_, Holder::OnTerm::dies);
  const auto named = *VmLock::holder(run_, "web-1");
  ASSERT_TRUE(named);
  EXPECT_EQ(named->pid, holder.pid());
  holder.end(SIGKILL);
  EXPECT_EQ(*VmLock::holder(run_, "web-1"), std::nullopt);
}

TEST_F(VmLockTest, TakeOverOfAFreeLockIsAnAcquire) {
  EXPECT_TRUE(VmLock::take_over(run_, "web-1", clock_, kPatience));
}

TEST_F(VmLockTest, TakeOverAsksFirst) {
  Holder holder(run_, Holder::OnTerm::dies);
  const auto lock = VmLock::take_over(run_, "web-1", clock_, kLongPatience);
  ASSERT_TRUE(lock) << lock.error().message;
  EXPECT_EQ(holder.reap(), SIGTERM);
}

TEST_F(VmLockTest, TakeOverKillsWhoDoesNotListen) {
  Holder holder(run_, Holder::OnTerm::ignores);
  const auto lock = VmLock::take_over(run_, "web-1", clock_, kPatience);
  ASSERT_TRUE(lock) << lock.error().message;
  EXPECT_EQ(holder.reap(), SIGKILL);
}

TEST_F(VmLockTest, TakeOverEndsAPausedHolder) {
  Holder holder(run_, Holder::OnTerm::dies);
  holder.send(SIGSTOP);
  const auto lock = VmLock::take_over(run_, "web-1", clock_, kPatience);
  ASSERT_TRUE(lock) << lock.error().message;
  EXPECT_NE(holder.reap(), 0);
}

TEST_F(VmLockTest, StrangerNamedByAForgedContentIsNotEnded) {
  Holder holder(run_, Holder::OnTerm::dies);
  const pid_t stranger = ::fork();
  if (stranger == 0) {
    ::execlp("sleep", "sleep", "600", nullptr);
    ::_exit(127);
  }
  // Only once it runs its own program is it a stranger.
  const auto ours = fs::read_symlink("/proc/self/exe");
  while (fs::read_symlink("/proc/" + std::to_string(stranger) + "/exe") == ours) ::sched_yield();
  const auto identity = *identify_process(stranger);
  std::ofstream(run_ + "/web-1.lock") << identity.pid << " " << identity.start_ticks << "\n";
  const auto lock = VmLock::take_over(run_, "web-1", clock_, kPatience);
  EXPECT_FALSE(lock);
  EXPECT_TRUE(*is_alive(identity));
  ::kill(stranger, SIGKILL);
  ::waitpid(stranger, nullptr, 0);
}

TEST_F(VmLockTest, LaterProcessWithTheNamedPidIsNotEnded) {
  Holder holder(run_, Holder::OnTerm::dies);
  const auto identity = *identify_process(holder.pid());
  std::ofstream(run_ + "/web-1.lock") << identity.pid << " " << identity.start_ticks - 1 << "\n";
  const auto lock = VmLock::take_over(run_, "web-1", clock_, kPatience);
  ASSERT_FALSE(lock);
  EXPECT_EQ(lock.error().code, Errc::busy);
  EXPECT_TRUE(*is_alive(identity));
}

TEST_F(VmLockTest, DirectoryOthersMayWriteToIsRefused) {
  fs::create_directory(run_);
  ASSERT_EQ(::chmod(run_.c_str(), 0777), 0);
  const auto lock = VmLock::acquire(run_, "web-1");
  ASSERT_FALSE(lock);
  EXPECT_EQ(lock.error().code, Errc::invalid);
}

TEST_F(VmLockTest, SymlinksAreNotFollowed) {
  fs::create_directory(scratch_.file("real"));
  fs::create_directory_symlink(scratch_.file("real"), run_);
  EXPECT_FALSE(VmLock::acquire(run_, "web-1"));
  fs::remove(run_);
  fs::create_directory(run_);
  std::ofstream(scratch_.file("precious")) << "content";
  fs::create_symlink(scratch_.file("precious"), run_ + "/web-1.lock");
  EXPECT_FALSE(VmLock::acquire(run_, "web-1"));
  EXPECT_EQ(fs::file_size(scratch_.file("precious")), 7U);
}

TEST(RunDirectory, OptionComesFirst) {
  EXPECT_EQ(*choose_run_directory("/x", "/y"), "/x");
}

TEST(RunDirectory, RootHasItsOwnAndOthersTheirs) {
  const auto chosen = choose_run_directory("", "/run/user/7");
  ASSERT_TRUE(chosen);
  EXPECT_EQ(*chosen, ::geteuid() == 0 ? "/run/pageferry" : "/run/user/7/pageferry");
}

}  // namespace
}  // namespace pageferry
