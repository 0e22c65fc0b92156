// Run directories: who may enter, what is refused, and that nothing but our own is ever removed.
#include "vmstate/run_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "fakes/scratch_directory.h"

namespace pageferry {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class RunDirectoryTest : public testing::Test {
 protected:
  static mode_t mode_of(const std::string& path) {
    struct stat status {};
    EXPECT_EQ(::lstat(path.c_str(), &status), 0) << path;
    return status.st_mode & 07777U;
  }
  Result<std::string> make(const std::string& vm, const std::string& run_id) const {
    return make_run_directory(root_, vm, run_id, {.uid = ::geteuid(), .gid = ::getegid()});
  }

  testing_support::ScratchDirectory scratch_;
  std::string root_ = scratch_.file("r");
};

TEST_F(RunDirectoryTest, LastLevelIsPrivateAndTheOthersCanOnlyBePassed) {
  const auto path = make("web", "a1");
  ASSERT_TRUE(path) << path.error().message;
  EXPECT_EQ(*path, root_ + "/web/a1");
  EXPECT_EQ(mode_of(*path), 0700U);
  EXPECT_EQ(mode_of(root_ + "/web"), 0711U);
  EXPECT_EQ(mode_of(root_), 0711U);
}

TEST_F(RunDirectoryTest, RootThatKeepsTheOtherUserOutIsNamed) {
  ASSERT_EQ(::mkdir(root_.c_str(), 0700), 0);
  const auto path =
      make_run_directory(root_, "web", "a1", {.uid = ::geteuid() + 1, .gid = ::getegid()});
  ASSERT_FALSE(path);
  EXPECT_EQ(path.error().code, Errc::invalid);
  EXPECT_THAT(path.error().message, HasSubstr(root_ + " has mode 700"));
}

TEST_F(RunDirectoryTest, SecondOneWithTheSameIdIsRefused) {
  ASSERT_TRUE(make("web", "a1"));
  EXPECT_EQ(make("web", "a1").error().code, Errc::exists);
  EXPECT_TRUE(make("web", "a2"));
}

TEST_F(RunDirectoryTest, NamesThatAreNoNamesAreRefused) {
  for (const char* name : {"", ".", "..", "a/b", ".hidden", "a b", "a\n"}) {
    EXPECT_EQ(make(name, "a1").error().code, Errc::invalid) << name;
    EXPECT_EQ(make("web", name).error().code, Errc::invalid) << name;
  }
}

TEST_F(RunDirectoryTest, PathWithoutRoomForSocketsIsRefusedWithTheLimit) {
  const auto path = make(std::string(64, 'v'), "a1");
  ASSERT_FALSE(path);
  EXPECT_THAT(path.error().message, HasSubstr("at most 80"));
}

TEST_F(RunDirectoryTest, LevelThatOthersMayWriteToIsRefused) {
  fs::create_directory(root_);
  ASSERT_EQ(::chmod(root_.c_str(), 0777), 0);
  const auto path = make("web", "a1");
  ASSERT_FALSE(path);
  EXPECT_THAT(path.error().message, HasSubstr("others may write"));
}

TEST_F(RunDirectoryTest, SymbolicLinkAsALevelIsNotFollowed) {
  fs::create_directory(scratch_.file("elsewhere"));
  fs::create_directory(root_);
  fs::create_symlink(scratch_.file("elsewhere"), root_ + "/web");
  EXPECT_EQ(make("web", "a1").error().code, Errc::invalid);
  EXPECT_TRUE(fs::is_empty(scratch_.file("elsewhere")));
}

TEST_F(RunDirectoryTest, RemovingTakesFilesAndTheEmptyDirectoryOfTheVm) {
  const auto path = make("web", "a1");
  ASSERT_TRUE(path);
  std::ofstream(*path + "/log") << "x";
  ASSERT_EQ(::mkfifo((*path + "/p.in").c_str(), 0600), 0);
  const auto removed = remove_run_directory(root_, *path);
  ASSERT_TRUE(removed) << removed.error().message;
  EXPECT_FALSE(fs::exists(root_ + "/web"));
  EXPECT_TRUE(fs::exists(root_));
}

TEST_F(RunDirectoryTest, RemovingLeavesTheOtherRunsOfTheVm) {
  const auto first = make("web", "a1");
  ASSERT_TRUE(make("web", "a2"));
  ASSERT_TRUE(remove_run_directory(root_, *first));
  EXPECT_TRUE(fs::exists(root_ + "/web/a2"));
}

TEST_F(RunDirectoryTest, RemovingTwiceIsFine) {
  const auto path = make("web", "a1");
  ASSERT_TRUE(remove_run_directory(root_, *path));
  EXPECT_TRUE(remove_run_directory(root_, *path));
}

TEST_F(RunDirectoryTest, NothingElseIsRemoved) {
  fs::create_directories(scratch_.file("other/web/a1"));
  for (const std::string& path : {scratch_.file("other/web/a1"), root_, root_ + "/web",
                                  root_ + "/web/..", root_ + "/../other/web"}) {
    EXPECT_EQ(remove_run_directory(root_, path).error().code, Errc::invalid) << path;
  }
  EXPECT_TRUE(fs::exists(scratch_.file("other/web/a1")));
}

TEST_F(RunDirectoryTest, RemovingDoesNotFollowALink) {
  ASSERT_TRUE(make("web", "a1"));
  fs::create_directory(scratch_.file("victim"));
  std::ofstream(scratch_.file("victim/file")) << "x";
  fs::create_symlink(scratch_.file("victim"), root_ + "/web/a2");
  EXPECT_FALSE(remove_run_directory(root_, root_ + "/web/a2"));
  EXPECT_TRUE(fs::exists(scratch_.file("victim/file")));
}

TEST(DefaultRunRootTest, RootHasOneOfItsOwnAndUsersHaveTheirs) {
  EXPECT_EQ(default_run_root(0, "/run/user/0").value(), "/run/pageferry");
  EXPECT_EQ(default_run_root(1000, "/run/user/1000").value(), "/run/user/1000/pageferry");
  EXPECT_EQ(default_run_root(1000, "").error().code, Errc::invalid);
}

}  // namespace
}  // namespace pageferry
