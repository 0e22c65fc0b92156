// AioFile against the real kernel and the file system of the temporary directory.
#include "transport/aio_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "fakes/scratch_directory.h"
#include "transport/io_buffer.h"
#include "transport/storage_wait.h"

namespace pageferry {
namespace {

using testing_support::ScratchDirectory;
constexpr std::size_t kBlock = kIoAlignmentBytes;

class AioFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = UniqueFd(::open(scratch_.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(directory_.valid());
    Result<AlignedMemory> memory = AlignedMemory::map(kHugePageBytes);
    ASSERT_TRUE(memory.has_value());
    memory_ = std::move(*memory);
  }
  Result<std::unique_ptr<AioFile>> create(const std::string& name, AioOptions options = {}) {
    return AioFile::create(directory_.get(), name, scratch_.path(), options);
  }
  Result<std::unique_ptr<AioFile>> open(const std::string& name) {
    return AioFile::open(directory_.get(), name, scratch_.path(), {});
  }
  std::span<std::byte> bytes(std::size_t count) { return {memory_.data(), count}; }

  ScratchDirectory scratch_;
  UniqueFd directory_;
  AlignedMemory memory_;
};

TEST_F(AioFileTest, ReadsBackWhatWasWrittenAndSynced) {
  const auto file = create("pages");
  ASSERT_TRUE(file.has_value()) << file.error().message;
  std::fill(bytes(8 * kBlock).begin(), bytes(8 * kBlock).end(), std::byte{7});
  ASSERT_TRUE(write_blocking(**file, bytes(8 * kBlock), 2 * kBlock, {}));
  ASSERT_TRUE(sync_blocking(**file, {}));
  const auto again = open("pages");
  ASSERT_TRUE(again.has_value()) << again.error().message;
  std::fill(bytes(8 * kBlock).begin(), bytes(8 * kBlock).end(), std::byte{0});
  ASSERT_TRUE(read_blocking(**again, bytes(8 * kBlock), 2 * kBlock, {}));
  EXPECT_EQ(bytes(8 * kBlock).front(), std::byte{7});
  EXPECT_EQ(bytes(8 * kBlock).back(), std::byte{7});
  EXPECT_EQ((*again)->size().value(), 10 * kBlock);
}

TEST_F(AioFileTest, ManyOperationsAreInFlightAtOnce) {
  const auto file = create("pages", {.queue_depth = 64});
  ASSERT_TRUE(file.has_value());
  for (std::uint64_t i = 0; i < 64; ++i) {
    ASSERT_TRUE((*file)->submit_write(bytes(kBlock), i * kBlock, i, IoPriority::normal));
  }
  const Result<void> refused =
      (*file)->submit_write(bytes(kBlock), 64 * kBlock, 64, IoPriority::normal);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, Errc::busy);
  std::vector<IoDone> done;
  while ((*file)->in_flight() > 0) ASSERT_TRUE(wait_for_completions(**file, {}, done));
  EXPECT_EQ(done.size(), 64U);
  for (const IoDone& one : done) EXPECT_TRUE(one.outcome.has_value());
}

TEST_F(AioFileTest, ABatchIsWrittenWhenItEnds) {
  const auto file = create("pages");
  ASSERT_TRUE(file.has_value());
  std::fill(bytes(4 * kBlock).begin(), bytes(4 * kBlock).end(), std::byte{9});
  (*file)->begin_batch();
  for (std::uint64_t i = 0; i < 4; ++i) {
    const auto block = bytes(4 * kBlock).subspan(i * kBlock, kBlock);
    ASSERT_TRUE((*file)->submit_write(block, i * kBlock, i, IoPriority::normal));
  }
  EXPECT_EQ((*file)->size().value(), 0U);
  (*file)->end_batch();
  std::vector<IoDone> done;
  while ((*file)->in_flight() > 0) ASSERT_TRUE(wait_for_completions(**file, {}, done));
  EXPECT_EQ(done.size(), 4U);
  for (const IoDone& one : done) EXPECT_TRUE(one.outcome.has_value());
  EXPECT_EQ((*file)->size().value(), 4 * kBlock);
}

TEST_F(AioFileTest, WhatTheKernelRefusesInABatchIsReportedAndTheRestIsDone) {
  {
    const auto file = create("pages");
    ASSERT_TRUE(write_blocking(**file, bytes(2 * kBlock), 0, {}));
  }
  const auto read_only = open("pages");
  (*read_only)->begin_batch();
  ASSERT_TRUE((*read_only)->submit_read(bytes(kBlock), 0, 0, IoPriority::normal));
  ASSERT_TRUE((*read_only)->submit_write(bytes(kBlock), 0, 1, IoPriority::normal));
  ASSERT_TRUE((*read_only)->submit_read(bytes(kBlock), kBlock, 2, IoPriority::normal));
  (*read_only)->end_batch();
  std::vector<IoDone> done;
  while ((*read_only)->in_flight() > 0) ASSERT_TRUE(wait_for_completions(**read_only, {}, done));
  ASSERT_EQ(done.size(), 3U);
  for (const IoDone& one : done) EXPECT_EQ(one.outcome.has_value(), one.tag != 1) << one.tag;
}

TEST_F(AioFileTest, ANewFileIsPrivate) {
  ASSERT_TRUE(create("pages"));
  struct stat facts {};
  ASSERT_EQ(::stat(scratch_.file("pages").c_str(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 07777U, 0600U);
}

TEST_F(AioFileTest, ATakenNameIsNotOverwritten) {
  ASSERT_TRUE(create("pages"));
  const auto second = create("pages");
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().code, Errc::exists);
}

TEST_F(AioFileTest, ADanglingSymlinkIsNotCreatedThrough) {
  std::filesystem::create_symlink(scratch_.file("elsewhere"), scratch_.file("pages"));
  EXPECT_EQ(create("pages").error().code, Errc::exists);
  EXPECT_FALSE(std::filesystem::exists(scratch_.file("elsewhere")));
}

TEST_F(AioFileTest, ASymlinkIsNotOpened) {
  ASSERT_TRUE(create("real"));
  std::filesystem::create_symlink("real", scratch_.file("pages"));
  const auto file = open("pages");
  ASSERT_FALSE(file.has_value());
  EXPECT_EQ(file.error().code, Errc::invalid);
  EXPECT_NE(file.error().message.find("symlink"), std::string::npos);
}

TEST_F(AioFileTest, AFifoIsRefusedWithoutHanging) {
  ASSERT_EQ(::mkfifo(scratch_.file("pages").c_str(), 0600), 0);
  EXPECT_EQ(open("pages").error().code, Errc::invalid);
}

TEST_F(AioFileTest, ANameWithASlashIsRefused) {
  EXPECT_EQ(open("../pages").error().code, Errc::invalid);
  EXPECT_EQ(create("a/b").error().code, Errc::invalid);
}

TEST_F(AioFileTest, AReadBeyondTheEndIsCorrupt) {
  const auto file = create("pages");
  ASSERT_TRUE(write_blocking(**file, bytes(kBlock), 0, {}));
  EXPECT_EQ(read_blocking(**file, bytes(2 * kBlock), 0, {}).error().code, Errc::corrupt);
  EXPECT_EQ(read_blocking(**file, bytes(kBlock), 9 * kBlock, {}).error().code, Errc::corrupt);
}

TEST_F(AioFileTest, AReadThatMeetsAFileWithAPartialBlockIsCorrupt) {
  std::ofstream(scratch_.file("pages")) << std::string(kBlock + 100, 'x');
  const auto file = open("pages");
  ASSERT_TRUE(file.has_value());
  EXPECT_EQ(read_blocking(**file, bytes(2 * kBlock), 0, {}).error().code, Errc::corrupt);
}

TEST_F(AioFileTest, AReservationGrowsTheFile) {
  const auto file = create("pages");
  ASSERT_TRUE((*file)->submit_allocate(0, std::uint64_t{1} << 20, 5));
  std::vector<IoDone> done;
  ASSERT_TRUE(wait_for_completions(**file, {}, done));
  ASSERT_EQ(done.size(), 1U);
  EXPECT_EQ(done[0].tag, 5U);
  EXPECT_TRUE(done[0].outcome.has_value());
  EXPECT_EQ((*file)->size().value(), std::uint64_t{1} << 20);
}

TEST_F(AioFileTest, ReadingAFileThatWasOpenedForReadingOnlyIsAllThatWorks) {
  ASSERT_TRUE(create("pages"));
  const auto file = open("pages");
  ASSERT_TRUE(file.has_value());
  EXPECT_FALSE(write_blocking(**file, bytes(kBlock), 0, {}).has_value());
}

TEST_F(AioFileTest, UnalignedRequestsAreRefused) {
  const auto file = create("pages");
  const auto submit = [&](std::span<std::byte> what, std::uint64_t offset) {
    return (*file)->submit_write(what, offset, 0, IoPriority::normal).error().code;
  };
  EXPECT_EQ(submit(bytes(100), 0), Errc::invalid);
  EXPECT_EQ(submit(bytes(kBlock), 512), Errc::invalid);
  EXPECT_EQ(submit(bytes(2 * kBlock).subspan(8, kBlock), 0), Errc::invalid);
  EXPECT_EQ(submit(bytes(kBlock), kFileBytesMax), Errc::invalid);
}

TEST_F(AioFileTest, EveryPriorityIsAccepted) {
  const auto file = create("pages");
  for (const IoPriority priority :
       {IoPriority::demand, IoPriority::normal, IoPriority::background}) {
    ASSERT_TRUE((*file)->submit_write(bytes(kBlock), 0, 0, priority));
    std::vector<IoDone> done;
    ASSERT_TRUE(wait_for_completions(**file, {}, done));
    EXPECT_TRUE(done.at(0).outcome.has_value()) << done.at(0).outcome.error().message;
  }
}

TEST_F(AioFileTest, AnExhaustedAioLimitNamesTheSysctl) {
  const Unexpected error = aio_setup_error(EAGAIN, 512);
  EXPECT_NE(error.value().message.find("fs.aio-max-nr"), std::string::npos);
  EXPECT_NE(error.value().message.find("512"), std::string::npos);
}

// Where there is no tmpfs at the usual place this fails, loudly: buffered mode would be untested.
TEST(AioFileOnTmpfsTest, FallsBackToBufferedAndSaysSo) {
  const UniqueFd directory(::open("/dev/shm", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ASSERT_TRUE(directory.valid());
  const std::string name = "pageferry-test-" + std::to_string(::getpid());
  const auto file = AioFile::create(directory.get(), name, "/dev/shm", {});
  ASSERT_TRUE(file.has_value()) << file.error().message;
  ::unlinkat(directory.get(), name.c_str(), 0);
  EXPECT_EQ((*file)->io_mode(), IoMode::buffered);
  EXPECT_NE((*file)->buffered_reason().find("tmpfs"), std::string::npos);
  Result<AlignedMemory> memory = AlignedMemory::map(kBlock);
  ASSERT_TRUE(memory.has_value());
  EXPECT_TRUE(write_blocking(**file, {memory->data(), kBlock}, 0, {}));
  EXPECT_TRUE(sync_blocking(**file, {}));
}

}  // namespace
}  // namespace pageferry
