// A VM's directory on a real file system: what is made, what is refused, and that no symlink is
// followed.
#include "transport/vm_directory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "fakes/ownership_samples.h"
#include "fakes/scratch_directory.h"

namespace pageferry {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;
using IfMissing = VmDirectory::IfMissing;

void touch(const std::string& path) {
  std::ofstream(path) << "x";
}

TEST(VmDirectoryTest, IsMadePrivate) {
  const ScratchDirectory scratch;
  const auto vm = VmDirectory::open(scratch.path(), "web-1", IfMissing::create);
  ASSERT_TRUE(vm) << vm.error().message;
  struct stat status {};
  ASSERT_EQ(::stat(scratch.file("web-1").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0700U);
}

TEST(VmDirectoryTest, MissingOneIsNotFound) {
  const ScratchDirectory scratch;
  const auto vm = VmDirectory::open(scratch.path(), "web-1", IfMissing::refuse);
  ASSERT_FALSE(vm);
  EXPECT_EQ(vm.error().code, Errc::not_found);
}

TEST(VmDirectoryTest, StoreThatIsASymlinkIsRefusedWithAndWithoutSlash) {
  const ScratchDirectory scratch;
  fs::create_directory(scratch.file("real"));
  fs::create_directory_symlink(scratch.file("real"), scratch.file("store"));
  for (const char* ending : {"", "/", "//"}) {
    const auto vm = VmDirectory::open(scratch.file("store") + ending, "web-1", IfMissing::create);
    ASSERT_FALSE(vm);
    EXPECT_EQ(vm.error().code, Errc::invalid);
    EXPECT_NE(vm.error().message.find("symlink"), std::string::npos) << vm.error().message;
  }
  EXPECT_TRUE(fs::is_empty(scratch.file("real")));
}

TEST(VmDirectoryTest, DirectoryThatIsASymlinkIsRefused) {
  const ScratchDirectory scratch;
  fs::create_directory(scratch.file("elsewhere"));
  fs::create_directory_symlink(scratch.file("elsewhere"), scratch.file("web-1"));
  const auto vm = VmDirectory::open(scratch.path(), "web-1", IfMissing::create);
  ASSERT_FALSE(vm);
  EXPECT_EQ(vm.error().code, Errc::invalid);
}

TEST(VmDirectoryTest, DirectoryOpenToOthersIsRefused) {
  const ScratchDirectory scratch;
  fs::create_directory(scratch.file("web-1"));
  ASSERT_EQ(::chmod(scratch.file("web-1").c_str(), 0750), 0);
  const auto vm = VmDirectory::open(scratch.path(), "web-1", IfMissing::create);
  ASSERT_FALSE(vm);
  EXPECT_NE(vm.error().message.find("0750"), std::string::npos) << vm.error().message;
}

TEST(VmDirectoryTest, NamesThatLeaveTheStoreAreRefused) {
  const ScratchDirectory scratch;
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string("a/b"), std::string("../x"),
        std::string(".hidden"), std::string("-flag"), std::string("a b"),
        std::string(kVmNameBytesMax + 1, 'a')}) {
    EXPECT_FALSE(VmDirectory::open(scratch.path(), name, IfMissing::create)) << name;
  }
  EXPECT_TRUE(
      VmDirectory::open(scratch.path(), std::string(kVmNameBytesMax, 'a'), IfMissing::create));
}

class OpenVmDirectory : public ::testing::Test {
 protected:
  ScratchDirectory scratch_;
  VmDirectory vm_ = *VmDirectory::open(scratch_.path(), "web-1", IfMissing::create);
  std::string inside(const std::string& name) const { return scratch_.file("web-1/" + name); }
};

TEST_F(OpenVmDirectory, RecordsAreReadBackFromTheFileSystem) {
  CancelSignal stop;
  auto log = *vm_.open_log();
  for (const RecordFact& fact :
       {RecordFact(OwnerFact{}), RecordFact(runs()), RecordFact(releases_image())}) {
    const auto outcome = log.write(sample_record(0, fact), WhenRefused::give_up, stop);
    ASSERT_TRUE(outcome) << outcome.error().message;
    EXPECT_EQ(outcome->kind, RecordOutcome::Kind::written);
  }
  const auto snapshot = vm_.open_log()->read();
  ASSERT_TRUE(snapshot) << snapshot.error().message;
  EXPECT_TRUE(snapshot->top().ran());
  EXPECT_EQ(image_for(*snapshot, Epoch{1}).image, sample_image());
  struct stat status {};
  ASSERT_EQ(::stat(inside("owner.0").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0600U);
}

TEST_F(OpenVmDirectory, SecondClaimIsTaken) {
  CancelSignal stop;
  const auto first = sample_record(0, OwnerFact{}, sample_writer('a', 1));
  const auto second = sample_record(0, OwnerFact{}, sample_writer('b', 2));
  ASSERT_TRUE(vm_.open_log()->write(first, WhenRefused::give_up, stop));
  const auto outcome = vm_.open_log()->write(second, WhenRefused::give_up, stop);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->kind, RecordOutcome::Kind::taken);
  EXPECT_EQ(outcome->winner, first);
}

TEST_F(OpenVmDirectory, RecordThatIsASymlinkIsRefused) {
  CancelSignal stop;
  ASSERT_TRUE(vm_.open_log()->write(sample_record(0, OwnerFact{}), WhenRefused::give_up, stop));
  fs::rename(inside("owner.0"), scratch_.file("stolen"));
  fs::create_symlink(scratch_.file("stolen"), inside("owner.0"));
  const auto snapshot = vm_.open_log()->read();
  ASSERT_FALSE(snapshot);
  EXPECT_EQ(snapshot.error().code, Errc::corrupt);
}

TEST_F(OpenVmDirectory, RecordThatIsAFifoDoesNotBlock) {
  ASSERT_EQ(::mkfifo(inside("owner.0").c_str(), 0600), 0);
  const auto snapshot = vm_.open_log()->read();
  ASSERT_FALSE(snapshot);
  EXPECT_EQ(snapshot.error().code, Errc::corrupt);
}

TEST_F(OpenVmDirectory, RecordLongerThanTheLimitIsRefused) {
  std::ofstream(inside("owner.0")) << std::string(kRecordBytesMax + 1, 'x');
  const auto snapshot = vm_.open_log()->read();
  ASSERT_FALSE(snapshot);
  EXPECT_EQ(snapshot.error().code, Errc::corrupt);
}

TEST_F(OpenVmDirectory, AttemptsAreListedInOrderOfEpoch) {
  const auto late = *vm_.create_attempt(Epoch{10});
  const auto early = *vm_.create_attempt(Epoch{9});
  fs::create_directory(inside("attempt.9.short"));
  touch(inside("owner.0"));
  const auto names = vm_.list_attempts();
  ASSERT_TRUE(names) << names.error().message;
  EXPECT_EQ(*names, (std::vector<std::string>{early.name, late.name}));
}

TEST_F(OpenVmDirectory, AttemptIsRemovedWithItsFiles) {
  const auto attempt = *vm_.create_attempt(Epoch{1});
  touch(inside(attempt.name + "/pages"));
  touch(inside(attempt.name + "/state"));
  const auto removed = vm_.remove_attempt(attempt.name);
  ASSERT_TRUE(removed) << removed.error().message;
  EXPECT_FALSE(fs::exists(inside(attempt.name)));
}

TEST_F(OpenVmDirectory, RemovingAnAttemptTwiceSucceeds) {
  const auto attempt = *vm_.create_attempt(Epoch{1});
  EXPECT_TRUE(vm_.remove_attempt(attempt.name));
  EXPECT_TRUE(vm_.remove_attempt(attempt.name));
}

TEST_F(OpenVmDirectory, SymlinkInsideAnAttemptIsRemovedAndNotFollowed) {
  const auto attempt = *vm_.create_attempt(Epoch{1});
  touch(scratch_.file("precious"));
  fs::create_symlink(scratch_.file("precious"), inside(attempt.name + "/pages"));
  EXPECT_TRUE(vm_.remove_attempt(attempt.name));
  EXPECT_TRUE(fs::exists(scratch_.file("precious")));
}

TEST_F(OpenVmDirectory, AttemptThatIsASymlinkIsNeitherOpenedNorRemoved) {
  fs::create_directory(scratch_.file("elsewhere"));
  touch(scratch_.file("elsewhere/precious"));
  const std::string name = attempt_name(Epoch{1}, sample_id(1));
  fs::create_directory_symlink(scratch_.file("elsewhere"), inside(name));
  EXPECT_FALSE(vm_.open_attempt(name));
  EXPECT_FALSE(vm_.remove_attempt(name));
  EXPECT_TRUE(fs::exists(scratch_.file("elsewhere/precious")));
}

TEST_F(OpenVmDirectory, AttemptWithADirectoryInsideIsLeftWhole) {
  const auto attempt = *vm_.create_attempt(Epoch{1});
  touch(inside(attempt.name + "/pages"));
  fs::create_directory(inside(attempt.name + "/not-ours"));
  const auto removed = vm_.remove_attempt(attempt.name);
  ASSERT_FALSE(removed);
  EXPECT_EQ(removed.error().code, Errc::invalid);
  EXPECT_TRUE(fs::exists(inside(attempt.name + "/pages")));
}

TEST_F(OpenVmDirectory, OnlyNamesOfOurFormAreOpenedOrRemoved) {
  touch(inside("owner.0"));
  const std::string id = sample_id(1).hex();
  for (const std::string& name :
       {std::string("owner.0"), std::string(".."), std::string(), "attempt.01." + id,
        "attempt.1." + id + "/..", "attempt.1." + id.substr(1), "attempt.-1." + id}) {
    EXPECT_FALSE(vm_.open_attempt(name)) << name;
    EXPECT_FALSE(vm_.remove_attempt(name)) << name;
  }
  EXPECT_TRUE(fs::exists(inside("owner.0")));
}

}  // namespace
}  // namespace pageferry
