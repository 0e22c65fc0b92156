// Identities of hosts and processes, against this host's own kernel.
#include "transport/host_identity.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>

#include "fakes/ownership_samples.h"

namespace pageferry {
namespace {

using namespace testing_support;

TEST(RandomIdTest, TextIsReadBack) {
  const auto id = RandomId::make();
  ASSERT_TRUE(id) << id.error().message;
  const auto again = RandomId::parse(id->hex());
  ASSERT_TRUE(again);
  EXPECT_EQ(*again, *id);
}

TEST(RandomIdTest, NoTwoAreTheSame) {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(RandomId::make()->hex());
  EXPECT_EQ(seen.size(), 1000U);
}

TEST(RandomIdTest, OtherTextIsRefused) {
  const std::string good(32, 'a');
  EXPECT_TRUE(RandomId::parse(good));
  for (const std::string& text : {std::string(), good.substr(1), good + "a", std::string(32, 'A'),
                                  std::string(31, 'a') + "g", std::string(32, ' ')}) {
    EXPECT_FALSE(RandomId::parse(text)) << text;
  }
}

TEST(HostIdentityTest, ThisHostIsTheSameTwice) {
  const auto one = this_host();
  const auto two = this_host();
  ASSERT_TRUE(one) << one.error().message;
  ASSERT_TRUE(two);
  EXPECT_TRUE(same_boot(*one, *two));
  EXPECT_FALSE(same_machine_other_boot(*one, *two));
  EXPECT_TRUE(validate_host(*one));
}

TEST(HostIdentityTest, RebootIsSeenOnTheSameMachineOnly) {
  EXPECT_TRUE(same_machine_other_boot(sample_host('a', 1), sample_host('a', 2)));
  EXPECT_FALSE(same_machine_other_boot(sample_host('a', 1), sample_host('b', 2)));
}

TEST(HostIdentityTest, ClonedNameWithAnotherMachineIsNoReboot) {
  HostIdentity clone = sample_host('a', 2);
  clone.machine = std::string(32, 'c');
  EXPECT_FALSE(same_machine_other_boot(sample_host('a', 1), clone));
}

TEST(HostIdentityTest, WithoutMachineIdNoRebootIsConcluded) {
  HostIdentity before = sample_host('a', 1);
  HostIdentity after = sample_host('a', 2);
  before.machine.clear();
  after.machine.clear();
  EXPECT_FALSE(same_machine_other_boot(before, after));
}

// A child that waits until it is killed; killed and reaped at the end.
class Child {
 public:
  Child() : pid_(::fork()) {
    if (pid_ == 0) {
      while (true) ::pause();
    }
  }
  ~Child() {
    kill();
    reap();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  pid_t pid() const { return pid_; }
  void kill() const { ::kill(pid_, SIGKILL); }
  // Returns once it is a zombie, and leaves it one.
  void wait_until_dead() const {
    siginfo_t info{};
    ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT);
  }
  void reap() {
    if (!reaped_) ::waitpid(pid_, nullptr, 0);
    reaped_ = true;
  }

 private:
  pid_t pid_;
  bool reaped_ = false;
};

TEST(ProcessIdentityTest, ThisProcessIsAlive) {
  const auto self = this_process();
  ASSERT_TRUE(self) << self.error().message;
  EXPECT_EQ(self->pid, ::getpid());
  EXPECT_TRUE(*is_alive(*self));
}

TEST(ProcessIdentityTest, LaterProcessWithTheSamePidIsAnother) {
  auto self = *this_process();
  self.start_ticks -= 1;
  EXPECT_FALSE(*is_alive(self));
}

TEST(ProcessIdentityTest, ZombieIsNotAlive) {
  Child child;
  const auto identity = identify_process(child.pid());
  ASSERT_TRUE(identity) << identity.error().message;
  EXPECT_TRUE(*is_alive(*identity));
  child.kill();
  child.wait_until_dead();
  EXPECT_FALSE(*is_alive(*identity));
}

TEST(ProcessIdentityTest, ReapedProcessIsGone) {
  Child child;
  const auto identity = *identify_process(child.pid());
  child.kill();
  child.reap();
  EXPECT_FALSE(*is_alive(identity));
  EXPECT_EQ(identify_process(child.pid()).error().code, Errc::gone);
}

TEST(ProcessIdentityTest, PidsBelowOneAreRefused) {
  EXPECT_EQ(identify_process(0).error().code, Errc::invalid);
  EXPECT_EQ(identify_process(-1).error().code, Errc::invalid);
}

}  // namespace
}  // namespace pageferry
