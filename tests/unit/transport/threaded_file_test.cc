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

// Counts batches; its first submit is slow, so that the next ones gather behind it.
class BatchCountingFile final : public StorageFile {
 public:
  struct Seen {
    std::latch first_begun{1};
    std::latch others_queued{1};
    std::vector<unsigned> writes_of_batch;
  };
  explicit BatchCountingFile(Seen& seen)
      : StorageFile("counting", kBlock, 8), seen_(seen), event_(::eventfd(0, EFD_CLOEXEC)) {}

 protected:
  Result<void> submit_read_impl(std::span<std::byte>, std::uint64_t, std::uint64_t,
                                IoPriority) override {
    return fail(Errc::invalid, "only writes");
  }
  Result<void> submit_write_impl(std::span<const std::byte>, std::uint64_t, std::uint64_t,
                                 IoPriority) override {
    if (seen_.writes_of_batch.size() == 1 && seen_.writes_of_batch.back() == 0) {
      seen_.first_begun.count_down();
      seen_.others_queued.wait();
    }
    ++seen_.writes_of_batch.back();
    return fail(Errc::io, "reported at once");
  }
  Result<void> submit_sync_impl(std::uint64_t) override { return fail(Errc::invalid, "no sync"); }
  Result<void> submit_allocate_impl(std::uint64_t, std::uint64_t, std::uint64_t) override {
    return fail(Errc::invalid, "no allocation");
  }
  void begin_batch_impl() override { seen_.writes_of_batch.push_back(0); }
  void reap_impl(std::vector<IoDone>&) override {}
  int completion_fd_impl() const override { return event_.get(); }
  Result<std::uint64_t> size_impl() const override { return 0; }

 private:
  Seen& seen_;
  UniqueFd event_;
};

TEST(ThreadedFileTest, WritesThatGatherGoToTheInnerFileTogether) {
  BatchCountingFile::Seen seen;
  Result<AlignedMemory> memory = AlignedMemory::map(kBlock);
  {
    auto file = ThreadedFile::over(std::make_unique<BatchCountingFile>(seen), Milliseconds(1000));
    ASSERT_TRUE(file.has_value());
    const std::span<const std::byte> block(memory->data(), kBlock);
    ASSERT_TRUE((*file)->submit_write(block, 0, 0, IoPriority::normal));
    seen.first_begun.wait();
    for (std::uint64_t tag = 1; tag < 4; ++tag) {
      ASSERT_TRUE((*file)->submit_write(block, tag * kBlock, tag, IoPriority::normal));
    }
    seen.others_queued.count_down();
    std::vector<IoDone> done;
    while ((*file)->in_flight() > 0) {
      ASSERT_TRUE(wait_for_completions(**file, {}, done));
    }
    EXPECT_EQ(done.size(), 4U);
  }
  EXPECT_EQ(seen.writes_of_batch, (std::vector<unsigned>{1, 3}));
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
