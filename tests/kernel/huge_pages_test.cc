// Goal: tests that need 2 MiB pages take turns, in C++ and in Python (tests/harness/huge_pages_test.py says the same).
// Method: a second lock on the kernel's file of their number, which may not wait.
#include "fakes/huge_pages.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace pageferry {
namespace {

TEST(HugePagesTest, NobodyElseHasATurnWhileOneTestUsesThem) {
  const testing_support::HugePages pages(0);
  const UniqueFd other(
      ::open("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(other.valid());
  EXPECT_NE(::flock(other.get(), LOCK_EX | LOCK_NB), 0);
  EXPECT_EQ(errno, EWOULDBLOCK);
}

}  // namespace
}  // namespace pageferry
