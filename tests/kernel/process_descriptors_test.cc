// Descriptors of a real other process: found, duplicated, and every way in which that is refused.
#include "transport/os/process_descriptors.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/eventfd.h>

#include <algorithm>

#include "fakes/waiting_child.h"

namespace pageferry {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing_support::ask_as_nobody;
using testing_support::process_of_root;
using testing_support::WaitingChild;

constexpr int kCounter = 7;

int open_bare_userfault() {
  return static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
}

int open_counter() {
  return ::eventfd(kCounter, EFD_CLOEXEC);
}

TEST(ProcessDescriptors, FindsTheUserfaultfdOfAnotherProcess) {
  const WaitingChild child(open_bare_userfault);
  const auto found = descriptors_of(child.pid(), kUserfaultDescriptor);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_THAT(*found, ElementsAre(child.number()));
}

TEST(ProcessDescriptors, FindsNoUserfaultfdWhereThereIsNone) {
  const WaitingChild child(open_counter);
  const auto found = descriptors_of(child.pid(), kUserfaultDescriptor);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_THAT(*found, IsEmpty());
}

TEST(ProcessDescriptors, WithoutATargetFindsAllInAscendingOrder) {
  const WaitingChild child(open_counter);
  const auto found = descriptors_of(child.pid(), std::nullopt);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_THAT(*found, Contains(child.number()));
  EXPECT_TRUE(std::is_sorted(found->begin(), found->end()));
}

TEST(ProcessDescriptors, ADuplicateIsTheSameOpenFile) {
  const WaitingChild child(open_counter);
  const auto duplicate = duplicate_descriptor(child.pidfd(), child.number());
  ASSERT_TRUE(duplicate) << duplicate.error().message;
  std::uint64_t counted = 0;
  ASSERT_EQ(::read(duplicate->get(), &counted, sizeof counted), 8);
  EXPECT_EQ(counted, static_cast<std::uint64_t>(kCounter));
}

TEST(ProcessDescriptors, AProcessThatHasEndedIsGone) {
  WaitingChild child(open_counter);
  child.end();
  const auto found = descriptors_of(child.pid(), std::nullopt);
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code, Errc::gone);
  const auto duplicate = duplicate_descriptor(child.pidfd(), child.number());
  ASSERT_FALSE(duplicate);
  EXPECT_EQ(duplicate.error().code, Errc::gone);
}

TEST(ProcessDescriptors, ADescriptorThatIsNotOpenIsNotFound) {
  const WaitingChild child(open_counter);
  const auto duplicate = duplicate_descriptor(child.pidfd(), child.number() + 100);
  ASSERT_FALSE(duplicate);
  EXPECT_EQ(duplicate.error().code, Errc::not_found);
  EXPECT_THAT(duplicate.error().message, HasSubstr(std::to_string(child.number() + 100)));
}

TEST(ProcessDescriptors, AnotherUserMayNotLook) {
  // Looked up before the fork: in the child getpid() is another.
  const pid_t target = process_of_root();
  EXPECT_EQ(ask_as_nobody([&] {
              const auto found = descriptors_of(target, std::nullopt);
              return found ? 200 : static_cast<int>(found.error().code);
            }),
            static_cast<int>(Errc::unsupported));
}

TEST(ProcessDescriptors, AnotherUserGetsNoDuplicate) {
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, process_of_root(), 0)));
  ASSERT_TRUE(pidfd.valid());
  EXPECT_EQ(ask_as_nobody([&] {
              const auto duplicate = duplicate_descriptor(pidfd, STDIN_FILENO);
              return duplicate ? 200 : static_cast<int>(duplicate.error().code);
            }),
            static_cast<int>(Errc::unsupported));
}

TEST(ProcessDescriptors, TheTrialSaysYesWhereADuplicateIsGiven) {
  const WaitingChild child(open_counter);
  const auto allowed = check_may_duplicate(child.pidfd(), child.number());
  EXPECT_TRUE(allowed) << allowed.error().message;
}

TEST(ProcessDescriptors, TheTrialSaysWhatAnotherUserIsTold) {
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, process_of_root(), 0)));
  ASSERT_TRUE(pidfd.valid());
  EXPECT_EQ(ask_as_nobody([&] {
              const auto allowed = check_may_duplicate(pidfd, STDIN_FILENO);
              return allowed ? 200 : static_cast<int>(allowed.error().code);
            }),
            static_cast<int>(Errc::unsupported));
}

TEST(ProcessDescriptors, TheTrialOfAClosedDescriptorIsNotFound) {
  const WaitingChild child(open_counter);
  const auto allowed = check_may_duplicate(child.pidfd(), child.number() + 100);
  ASSERT_FALSE(allowed);
  EXPECT_EQ(allowed.error().code, Errc::not_found);
}

}  // namespace
}  // namespace pageferry
