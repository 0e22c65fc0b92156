// A file on its own thread behaves like the file, and a store that hangs holds up nobody.
#include "transport/threaded_file.h"

#include <gtest/gtest.h>

#include <latch>

#include "fakes/memory_storage.h"
#include "transport/storage_wait.h"

namespace pageferry {
namespace {

using namespace testing_support;
constexpr std::size_t kBlock = kIoAlignmentBytes;

// Its submit blocks until it is let go: a device whose queue is stuck.
class StuckFile final : public StorageFile {
 public:
  explicit StuckFile(std::latch& let_go)
      : StorageFile("stuck", kBlock, 8), let_go_(let_go), event_(::eventfd(0, EFD_CLOEXEC)) {}

 protected:
  Result<void> submit_read_impl(std::span<std::byte>, std::uint64_t, std::uint64_t,
                                IoPriority) override {
    return stuck();
  }
  Result<void> submit_write_impl(std::span<const std::byte>, std::uint64_t, std::uint64_t,
                                 IoPriority) override {
    return stuck();
  }
  Result<void> submit_sync_impl(std::uint64_t) override { return stuck(); }
  Result<void> submit_allocate_impl(std::uint64_t, std::uint64_t, std::uint64_t) override {
    return stuck();
  }
  void reap_impl(std::vector<IoDone>&) override {}
  int completion_fd_impl() const override { return event_.get(); }
  Result<std::uint64_t> size_impl() const override { return 0; }

 private:
  Result<void> stuck() {
    let_go_.wait();
    return fail(Errc::io, "stuck: let go");
  }
  std::latch& let_go_;
  UniqueFd event_;
};

TEST(ThreadedFileTest, OperationsReachTheInnerFile) {
  MemoryDisk disk;
  auto file = ThreadedFile::over(std::make_unique<MemoryStorage>(disk), Milliseconds(1000));
  ASSERT_TRUE(file.has_value());
  Result<AlignedMemory> memory = AlignedMemory::map(kBlock);
  const std::span<std::byte> block(memory->data(), kBlock);
  std::fill(block.begin(), block.end(), std::byte{3});
  ASSERT_TRUE(write_blocking(**file, block, kBlock, {}));
  ASSERT_TRUE(sync_blocking(**file, {}));
  std::fill(block.begin(), block.end(), std::byte{0});
  ASSERT_TRUE(read_blocking(**file, block, kBlock, {}));
  EXPECT_EQ(block.back(), std::byte{3});
  EXPECT_EQ(disk.durable.size(), 2 * kBlock);
}

TEST(ThreadedFileTest, AnInnerErrorComesBack) {
  MemoryDisk disk;
  disk.power_lost_at = 0;
  auto file = ThreadedFile::over(std::make_unique<MemoryStorage>(disk), Milliseconds(1000));
  EXPECT_EQ(sync_blocking(**file, {}).error().code, Errc::io);
  EXPECT_TRUE((*file)->scrap().has_value());
}

TEST(ThreadedFileTest, AStuckStoreHoldsUpNeitherTheWaitNorTheDestructor) {
  // Both outlive the thread that is left behind.
  static std::latch let_go(1);
  static Result<AlignedMemory> memory = AlignedMemory::map(kBlock);
  {
    auto file = ThreadedFile::over(std::make_unique<StuckFile>(let_go), Milliseconds(1));
    ASSERT_TRUE(file.has_value());
    CancelSignal cancel;
    cancel.cancel();
    const Result<void> written =
        write_blocking(**file, {memory->data(), kBlock}, 0, {&cancel, Deadline::never()});
    EXPECT_EQ(written.error().code, Errc::canceled);
  }
  let_go.count_down();
}

}  // namespace
}  // namespace pageferry
