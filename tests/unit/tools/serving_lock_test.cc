// ServingLock: one tool serves an epoch, others find it, and nothing is left of it.
#include "tools/pageferry/serving_lock.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "fakes/scratch_directory.h"

namespace pageferry {
namespace {

using testing_support::ScratchDirectory;

class ServingLockTest : public testing::Test {
 protected:
  ScratchDirectory directory_;
  const std::string run_ = directory_.file("run");
};

TEST_F(ServingLockTest, OneToolServesAnEpoch) {
  const auto lock = ServingLock::acquire(run_, "web", Epoch{3});
  ASSERT_TRUE(lock) << lock.error().message;
  const auto second = ServingLock::acquire(run_, "web", Epoch{3});
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::busy);
}

TEST_F(ServingLockTest, TheOtherLocksOfTheVmAreFree) {
  const auto lock = ServingLock::acquire(run_, "web", Epoch{3});
  EXPECT_TRUE(VmLock::acquire(run_, "web.source"));
  EXPECT_TRUE(VmLock::acquire(run_, "web.destination"));
  EXPECT_TRUE(ServingLock::acquire(run_, "web", Epoch{4}));
}

TEST_F(ServingLockTest, ItIsFoundByTheNameOfItsVmAndOfNoOther) {
  const auto lock = ServingLock::acquire(run_, "web", Epoch{3});
  const auto other = ServingLock::acquire(run_, "web.serving", Epoch{4});
  ASSERT_TRUE(other);
  EXPECT_EQ(serving_lock_names(run_, "web"), std::vector<std::string>{"web.serving.3"});
  EXPECT_TRUE(serving_lock_names(run_, "we").empty());
}

TEST_F(ServingLockTest, NothingIsLeftOfIt) {
  {
    auto lock = ServingLock::acquire(run_, "web", Epoch{3});
    ASSERT_TRUE(lock);
    const ServingLock moved = std::move(*lock);
    EXPECT_EQ(serving_lock_names(run_, "web").size(), 1U);
  }
  EXPECT_TRUE(std::filesystem::is_empty(run_));
}

TEST_F(ServingLockTest, SocketsOfWhoServesAreFoundInTheSameWay) {
  const auto lock = ServingLock::acquire(run_, "web", Epoch{12});
  const std::string path = serving_socket_path(run_, "web", Epoch{12});
  EXPECT_EQ(path, run_ + "/web.serving.12.sock");
  std::ofstream(path) << "";
  EXPECT_EQ(serving_socket_paths(run_, "web"), std::vector<std::string>{path});
}

}  // namespace
}  // namespace pageferry
