// HandOff: the steps of one tool life on a real directory.
#include "tools/pageferry/hand_off.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "fakes/scratch_directory.h"

namespace pageferry {
namespace {

using testing_support::ScratchDirectory;

class HandOffTest : public ::testing::Test {
 protected:
  std::unique_ptr<HandOff> open() {
    auto opened = HandOff::open(scratch_.path(), "vm", VmDirectory::IfMissing::create, stop_);
    EXPECT_TRUE(opened) << opened.error().message;
    return opened ? std::move(*opened) : nullptr;
  }
  ProcessIdentity vmm() { return *this_process(); }

  ScratchDirectory scratch_;
  CancelSignal stop_;
};

TEST_F(HandOffTest, FirstClaimWinsAndSecondToolLoses) {
  auto first = open();
  auto second = open();
  EXPECT_EQ(*first->claim(Epoch{0}, vmm()), Claim::won);
  EXPECT_EQ(*second->claim(Epoch{0}, vmm()), Claim::lost);
}

TEST_F(HandOffTest, SameToolClaimingAgainStillWins) {
  auto tool = open();
  EXPECT_EQ(*tool->claim(Epoch{0}, vmm()), Claim::won);
  EXPECT_EQ(*tool->claim(Epoch{0}, vmm()), Claim::won);
}

TEST_F(HandOffTest, EpochThatWasGivenUpIsNeverRun) {
  auto tool = open();
  ASSERT_EQ(*tool->claim(Epoch{0}, vmm()), Claim::won);
  ASSERT_TRUE(tool->give_up(Epoch{0}, GuestState{}));
  auto run = tool->run(Epoch{0}, vmm());
  ASSERT_FALSE(run);
  EXPECT_EQ(run.error().code, Errc::not_owner);
}

TEST_F(HandOffTest, GivingUpARunThatHappenedReleasesNothing) {
  auto tool = open();
  ASSERT_EQ(*tool->claim(Epoch{0}, vmm()), Claim::won);
  ASSERT_TRUE(tool->run(Epoch{0}, vmm()));
  GuestState state;
  state.image = ImageRef{attempt_name(Epoch{0}, *RandomId::make()), *RandomId::make()};
  ASSERT_TRUE(tool->give_up(Epoch{0}, state));
  auto snapshot = tool->read();
  ASSERT_TRUE(snapshot);
  EXPECT_FALSE(image_for(*snapshot, Epoch{1}).exists());
}

TEST_F(HandOffTest, ReleasedImageIsWhatTheNextEpochLoads) {
  auto tool = open();
  ASSERT_EQ(*tool->claim(Epoch{0}, vmm()), Claim::won);
  ASSERT_TRUE(tool->run(Epoch{0}, vmm()));
  GuestState state;
  state.image = ImageRef{attempt_name(Epoch{0}, *RandomId::make()), *RandomId::make()};
  ASSERT_TRUE(tool->release(Epoch{0}, state));
  auto snapshot = open()->read();
  ASSERT_TRUE(snapshot);
  EXPECT_EQ(image_for(*snapshot, Epoch{1}).image, state.image);
}

TEST_F(HandOffTest, AttemptsOfEarlierEpochsAreRemovedAndOthersKept) {
  auto tool = open();
  auto old_one = tool->directory().create_attempt(Epoch{3});
  auto new_one = tool->directory().create_attempt(Epoch{4});
  ASSERT_TRUE(old_one && new_one);
  ASSERT_TRUE(tool->remove_older_attempts(Epoch{4}));
  EXPECT_EQ(*tool->directory().list_attempts(), std::vector<std::string>{new_one->name});
}

TEST_F(HandOffTest, AnImageThatIsKeptStaysAndOlderOnesGo) {
  auto tool = open();
  auto old_one = tool->directory().create_attempt(Epoch{3});
  auto kept = tool->directory().create_attempt(Epoch{4});
  ASSERT_TRUE(old_one && kept);
  ASSERT_TRUE(tool->remove_attempts_superseded_by(kept->name));
  EXPECT_EQ(*tool->directory().list_attempts(), std::vector<std::string>{kept->name});
}

TEST_F(HandOffTest, AnAttemptOfADeadToolBesideTheImageThatIsKeptGoes) {
  auto tool = open();
  auto dead = tool->directory().create_attempt(Epoch{4});
  auto kept = tool->directory().create_attempt(Epoch{4});
  auto later = tool->directory().create_attempt(Epoch{5});
  ASSERT_TRUE(dead && kept && later);
  ASSERT_TRUE(tool->remove_attempts_superseded_by(kept->name));
  const auto names = tool->directory().list_attempts();
  ASSERT_TRUE(names);
  EXPECT_THAT(*names, testing::UnorderedElementsAre(kept->name, later->name));
}

TEST_F(HandOffTest, AKeptImageWhoseNameIsNoneRemovesNothing) {
  auto tool = open();
  auto old_one = tool->directory().create_attempt(Epoch{3});
  ASSERT_TRUE(old_one);
  const auto removed = tool->remove_attempts_superseded_by("../somewhere");
  ASSERT_FALSE(removed);
  EXPECT_EQ(removed.error().code, Errc::invalid);
  EXPECT_EQ(*tool->directory().list_attempts(), std::vector<std::string>{old_one->name});
}

TEST(Disks, UnchangedFileIsAccepted) {
  const ScratchDirectory scratch;
  const std::string path = scratch.path() + "/disk";
  std::ofstream(path) << "content";
  auto disks = stat_disks({path});
  ASSERT_TRUE(disks);
  EXPECT_TRUE(check_disks_unchanged(*disks));
}

TEST(Disks, FileThatChangedSinceIsNamed) {
  const ScratchDirectory scratch;
  const std::string path = scratch.path() + "/disk";
  std::ofstream(path) << "content";
  auto disks = stat_disks({path});
  ASSERT_TRUE(disks);
  std::ofstream(path) << "other content";
  auto checked = check_disks_unchanged(*disks);
  ASSERT_FALSE(checked);
  EXPECT_NE(checked.error().message.find(path), std::string::npos);
}

}  // namespace
}  // namespace pageferry
