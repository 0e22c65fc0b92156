// The small files of an attempt: written once, never through a symlink, read back whole.
#include "tools/pageferry/attempt_files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fakes/scratch_directory.h"
#include "tools/pageferry/hand_off.h"

namespace pageferry {
namespace {

using testing_support::ScratchDirectory;

class AttemptFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto opened = HandOff::open(scratch_.path(), "vm", VmDirectory::IfMissing::create, stop_);
    ASSERT_TRUE(opened) << opened.error().message;
    hand_off_ = std::move(*opened);
    auto made = hand_off_->directory().create_attempt(Epoch{0});
    ASSERT_TRUE(made);
    attempt_ = std::move(*made);
  }
  std::string path(const std::string& name) const {
    return scratch_.path() + "/vm/" + attempt_.name + "/" + name;
  }

  ScratchDirectory scratch_;
  CancelSignal stop_;
  std::unique_ptr<HandOff> hand_off_;
  Attempt attempt_;
};

TEST_F(AttemptFilesTest, TextComesBackAsWritten) {
  ASSERT_TRUE(write_attempt_text(attempt_, "note", "some words\n"));
  auto text = read_attempt_text(attempt_, "note");
  ASSERT_TRUE(text) << text.error().message;
  EXPECT_EQ(*text, "some words\n");
}

TEST_F(AttemptFilesTest, FileIsForItsOwnerOnly) {
  ASSERT_TRUE(write_attempt_text(attempt_, "note", "x"));
  struct stat status {};
  ASSERT_EQ(::stat(path("note").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
}

TEST_F(AttemptFilesTest, ExistingFileIsNeverOverwritten) {
  ASSERT_TRUE(write_attempt_text(attempt_, "note", "first"));
  auto again = write_attempt_text(attempt_, "note", "second");
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, Errc::exists);
  EXPECT_EQ(*read_attempt_text(attempt_, "note"), "first");
}

TEST_F(AttemptFilesTest, SymlinkIsNotFollowedWhenReading) {
  ASSERT_EQ(::symlink("/etc/hostname", path("note").c_str()), 0);
  EXPECT_FALSE(read_attempt_text(attempt_, "note"));
}

TEST_F(AttemptFilesTest, SymlinkIsNotFollowedWhenWriting) {
  ASSERT_EQ(::symlink((scratch_.path() + "/elsewhere").c_str(), path("note").c_str()), 0);
  EXPECT_FALSE(write_attempt_text(attempt_, "note", "x"));
}

TEST_F(AttemptFilesTest, UncommittedPageFileIsRefused) {
  const MonotonicClock clock;
  ASSERT_TRUE(write_attempt_text(attempt_, kPagesFileName, std::string(1 << 20, '\0')));
  EXPECT_FALSE(open_attempt_pages(attempt_, {}, clock, {}));
}

}  // namespace
}  // namespace pageferry
