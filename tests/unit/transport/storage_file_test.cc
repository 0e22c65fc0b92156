// What every storage file promises, shown on the fake: checks before the store sees anything, and scrap after a failed sync.
#include "transport/storage_file.h"

#include <gtest/gtest.h>

#include "fakes/memory_storage.h"
#include "transport/cancel_signal.h"
#include "transport/faulty_file.h"
#include "transport/storage_wait.h"

namespace pageferry {
namespace {

using namespace testing_support;

class StorageFileTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kBlock = kIoAlignmentBytes;
  void SetUp() override {
    Result<AlignedMemory> memory = AlignedMemory::map(4 * kBlock);
    ASSERT_TRUE(memory.has_value());
    memory_ = std::move(*memory);
  }
  std::span<std::byte> block() { return {memory_.data(), kBlock}; }
  std::unique_ptr<FaultyFile> faulty(std::string_view spec) {
    auto faults = parse_storage_faults(spec);
    EXPECT_TRUE(faults.has_value()) << faults.error().message;
    auto file = FaultyFile::over(std::make_unique<MemoryStorage>(disk_), *faults, clock_);
    EXPECT_TRUE(file.has_value());
    return std::move(*file);
  }

  MonotonicClock clock_;
  MemoryDisk disk_;
  AlignedMemory memory_;
};

TEST_F(StorageFileTest, AFailedSyncMakesTheFileScrap) {
  const auto file = faulty("sync:nth=1:eio");
  ASSERT_TRUE(write_blocking(*file, block(), 0, {}));
  const Result<void> synced = sync_blocking(*file, {});
  ASSERT_FALSE(synced.has_value());
  EXPECT_EQ(synced.error().code, Errc::io);
  ASSERT_TRUE(file->scrap().has_value());
  // The second sync would succeed, and that is exactly why it must not be tried.
  EXPECT_FALSE(sync_blocking(*file, {}).has_value());
  EXPECT_FALSE(write_blocking(*file, block(), 0, {}).has_value());
  EXPECT_FALSE(read_blocking(*file, block(), 0, {}).has_value());
  EXPECT_FALSE(file->submit_allocate(0, kBlock, 0).has_value());
  EXPECT_NE(file->submit_sync(0).error().message.find("is scrap"), std::string::npos);
}

TEST_F(StorageFileTest, AFailedWriteDoesNotMakeItScrap) {
  const auto file = faulty("write:nth=1:eio");
  EXPECT_FALSE(write_blocking(*file, block(), 0, {}).has_value());
  EXPECT_TRUE(write_blocking(*file, block(), 0, {}).has_value());
}

TEST_F(StorageFileTest, AWaitEndsWhenItIsCanceled) {
  const auto file = faulty("write:hang");
  CancelSignal cancel;
  cancel.cancel();
  const Result<void> written = write_blocking(*file, block(), 0, {&cancel, Deadline::never()});
  ASSERT_FALSE(written.has_value());
  EXPECT_EQ(written.error().code, Errc::canceled);
  EXPECT_EQ(file->in_flight(), 1U);
}

TEST_F(StorageFileTest, AWaitEndsAtItsDeadline) {
  const auto file = faulty("sync:hang");
  const Result<void> synced =
      sync_blocking(*file, {nullptr, Deadline::after(clock_, Milliseconds(1))});
  ASSERT_FALSE(synced.has_value());
  EXPECT_EQ(synced.error().code, Errc::timeout);
}

TEST_F(StorageFileTest, ADelayedWriteIsReportedInTheEnd) {
  const auto file = faulty("write:delay-ms=5");
  EXPECT_TRUE(write_blocking(*file, block(), 0, {}));
  EXPECT_EQ(disk_.live.size(), kBlock);
}

TEST_F(StorageFileTest, AFlippedReadDiffersInOneBit) {
  const auto file = faulty("read:after=1:flip");
  block()[0] = std::byte{1};
  ASSERT_TRUE(write_blocking(*file, block(), 0, {}));
  std::fill(block().begin(), block().end(), std::byte{0xff});
  ASSERT_TRUE(read_blocking(*file, block(), 0, {}));
  EXPECT_TRUE(std::equal(block().begin(), block().end(), disk_.live.begin()));
  ASSERT_TRUE(read_blocking(*file, block(), 0, {}));
  EXPECT_FALSE(std::equal(block().begin(), block().end(), disk_.live.begin()));
}

TEST_F(StorageFileTest, AFlippedWriteLeavesTheCallersBytesAlone) {
  const auto file = faulty("write:flip");
  ASSERT_TRUE(write_blocking(*file, block(), 0, {}));
  EXPECT_TRUE(
      std::all_of(block().begin(), block().end(), [](std::byte b) { return b == std::byte{0}; }));
  EXPECT_EQ(std::count(disk_.live.begin(), disk_.live.end(), std::byte{0}),
            static_cast<std::ptrdiff_t>(kBlock - 1));
}

TEST_F(StorageFileTest, ATornWriteStoresItsFirstHalf) {
  const auto file = faulty("write:torn");
  const std::span<std::byte> four(memory_.data(), 4 * kBlock);
  std::fill(four.begin(), four.end(), std::byte{9});
  ASSERT_TRUE(write_blocking(*file, four, 0, {}));
  EXPECT_EQ(disk_.live.size(), 2 * kBlock);
}

TEST_F(StorageFileTest, ALostWriteIsReportedAsDone) {
  const auto file = faulty("write:nth=2:lost");
  ASSERT_TRUE(write_blocking(*file, block(), 0, {}));
  ASSERT_TRUE(write_blocking(*file, block(), kBlock, {}));
  EXPECT_EQ(disk_.live.size(), kBlock);
}

TEST(StorageFaultSpecTest, EveryDocumentedSpecParses) {
  for (const char* spec :
       {"write:after=100:eio", "write:after=100:enospc", "sync:nth=1:eio", "read:after=5:flip",
        "write:after=50:hang", "write:delay-ms=20", "allocate:nth=3:enospc",
        "read:nth=1:eio,read:nth=2:eio,sync:delay-ms=60000"}) {
    EXPECT_TRUE(parse_storage_faults(spec).has_value()) << spec;
  }
}

TEST(StorageFaultSpecTest, WrongSpecsAreRefusedByName) {
  for (const char* spec :
       {"", "write", "write:eio:eio", "erase:eio", "write:nth=0:eio", "write:nth=:eio",
        "write:after=-1:eio", "write:after=1x:eio", "sync:flip", "read:lost", "read:torn",
        "write:delay-ms=60001", "write:eio,", "write:after=99999999999999999999:eio"}) {
    const auto parsed = parse_storage_faults(spec);
    ASSERT_FALSE(parsed.has_value()) << spec;
    EXPECT_EQ(parsed.error().code, Errc::invalid);
  }
}

}  // namespace
}  // namespace pageferry
