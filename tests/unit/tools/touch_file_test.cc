// The record of first touches on the store: comes back, replaces the one before, and nothing else is taken for it.
#include "tools/pageferry/touch_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "fakes/scratch_directory.h"

namespace pageferry {
namespace {

using testing_support::ScratchDirectory;

MemoryLayout layout_of(std::uint64_t pages) {
  return MemoryLayout::make({RamBlock{.name = "ram", .length_bytes = bytes_of_pages(pages)}})
      .value();
}

TouchRecord record_of(std::uint64_t first) {
  TouchRecord record;
  record.note({.first = PageIndex{first}, .pages = 3});
  return record;
}

class TouchFileTest : public ::testing::Test {
 protected:
  std::string path(const std::string& name) const { return scratch_.path() + "/vm/" + name; }
  Result<void> write(const TouchRecord& record) {
    return write_touch_file(directory_, record, layout_);
  }

  ScratchDirectory scratch_;
  VmDirectory directory_ =
      VmDirectory::open(scratch_.path(), "vm", VmDirectory::IfMissing::create).value();
  MemoryLayout layout_ = layout_of(100);
};

TEST_F(TouchFileTest, ComesBackAsItWasWritten) {
  ASSERT_TRUE(write(record_of(7)));
  const auto found = read_touch_file(directory_, layout_);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(*found, record_of(7));
}

TEST_F(TouchFileTest, NoneIsNoError) {
  const auto found = read_touch_file(directory_, layout_);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_FALSE(found->has_value());
}

TEST_F(TouchFileTest, TheLaterOneReplacesTheEarlier) {
  ASSERT_TRUE(write(record_of(7)));
  ASSERT_TRUE(write(record_of(50)));
  EXPECT_EQ(read_touch_file(directory_, layout_).value(), record_of(50));
}

TEST_F(TouchFileTest, OneThatSaysNothingDoesNotReplaceOneThatDoes) {
  ASSERT_TRUE(write(record_of(7)));
  ASSERT_TRUE(write(TouchRecord()));
  EXPECT_EQ(read_touch_file(directory_, layout_).value(), record_of(7));
}

TEST_F(TouchFileTest, IsForItsOwnerOnlyAndLeavesNoOtherName) {
  ASSERT_TRUE(write(record_of(7)));
  struct stat status {};
  ASSERT_EQ(::stat(path(kTouchFileName).c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
  EXPECT_FALSE(std::filesystem::exists(path(kUnfinishedTouchFileName)));
}

TEST_F(TouchFileTest, WhatAKilledWriterLeftIsReplaced) {
  std::ofstream(path(kUnfinishedTouchFileName)) << "half";
  ASSERT_TRUE(write(record_of(7)));
  EXPECT_EQ(read_touch_file(directory_, layout_).value(), record_of(7));
  EXPECT_FALSE(std::filesystem::exists(path(kUnfinishedTouchFileName)));
}

TEST_F(TouchFileTest, AFailedWriteKeepsTheOneBeforeAndLeavesNoOtherName) {
  ASSERT_TRUE(std::filesystem::create_directory(path(kTouchFileName)));
  EXPECT_FALSE(write(record_of(7)));
  EXPECT_TRUE(std::filesystem::is_directory(path(kTouchFileName)));
  EXPECT_FALSE(std::filesystem::exists(path(kUnfinishedTouchFileName)));
}

TEST_F(TouchFileTest, ASymlinkIsReplacedAndNotFollowed) {
  const std::string elsewhere = scratch_.file("elsewhere");
  std::ofstream(elsewhere) << "mine";
  ASSERT_EQ(::symlink(elsewhere.c_str(), path(kTouchFileName).c_str()), 0);
  EXPECT_FALSE(read_touch_file(directory_, layout_));
  ASSERT_TRUE(write(record_of(7)));
  EXPECT_EQ(std::filesystem::file_size(elsewhere), 4U);
  EXPECT_EQ(read_touch_file(directory_, layout_).value(), record_of(7));
}

TEST_F(TouchFileTest, OneOfAGuestOfAnotherSizeIsRefused) {
  ASSERT_TRUE(write(record_of(7)));
  const auto found = read_touch_file(directory_, layout_of(200));
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code, Errc::invalid);
}

TEST_F(TouchFileTest, ALongerFileThanARecordCanBeIsRefused) {
  std::ofstream(path(kTouchFileName)) << "x";
  std::filesystem::resize_file(path(kTouchFileName), kTouchRecordBytesMax + 1);
  const auto found = read_touch_file(directory_, layout_);
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code, Errc::corrupt);
}

TEST_F(TouchFileTest, OutlivesTheAttemptsAndIsNoneOfThem) {
  ASSERT_TRUE(write(record_of(7)));
  const auto attempt = directory_.create_attempt(Epoch{0});
  ASSERT_TRUE(attempt);
  ASSERT_TRUE(directory_.remove_attempt(attempt->name));
  EXPECT_TRUE(directory_.list_attempts().value().empty());
  EXPECT_EQ(read_touch_file(directory_, layout_).value(), record_of(7));
}

}  // namespace
}  // namespace pageferry
