// The queue joins what follows each other, and never has two writes to one place in flight.
#include "pager/write_queue.h"

#include <gtest/gtest.h>

#include "fakes/memory_storage.h"

namespace pageferry {
namespace {

using namespace testing_support;

// Watches the writes; they complete one at a time, the oldest last, so that an order that is only luck shows.
class WatchingStorage final : public StorageFile {
 public:
  explicit WatchingStorage(MemoryDisk& disk)
      : StorageFile("watching", kIoAlignmentBytes, 32), inner_(disk) {}

  struct Seen {
    std::uint64_t offset = 0;
    std::size_t bytes = 0;
  };
  std::vector<Seen> seen;
  std::size_t most_in_flight = 0;
  bool overlapped = false;

 protected:
  Result<void> submit_read_impl(std::span<std::byte> to, std::uint64_t offset, std::uint64_t tag,
                                IoPriority priority) override {
    return inner_.submit_read(to, offset, tag, priority);
  }
  Result<void> submit_write_impl(std::span<const std::byte> from, std::uint64_t offset,
                                 std::uint64_t tag, IoPriority priority) override {
    for (const auto& [other, where] : in_flight_) {
      overlapped = overlapped ||
                   (offset < where.offset + where.bytes && where.offset < offset + from.size());
    }
    seen.push_back({offset, from.size()});
    in_flight_.push_back({tag, seen.back()});
    most_in_flight = std::max(most_in_flight, in_flight_.size());
    return inner_.submit_write(from, offset, tag, priority);
  }
  Result<void> submit_sync_impl(std::uint64_t tag) override { return inner_.submit_sync(tag); }
  Result<void> submit_allocate_impl(std::uint64_t offset, std::uint64_t length,
                                    std::uint64_t tag) override {
    return inner_.submit_allocate(offset, length, tag);
  }
  void reap_impl(std::vector<IoDone>& done) override {
    // Only when the queue has to wait for it: then the newest is done first.
    if (++calls_ % 4 != 0) return;
    inner_.reap(finished_);
    if (finished_.empty()) return;
    const std::uint64_t tag = finished_.back().tag;
    done.push_back(std::move(finished_.back()));
    finished_.pop_back();
    std::erase_if(in_flight_, [tag](const auto& write) { return write.first == tag; });
  }
  int completion_fd_impl() const override { return always_ready_.get(); }
  Result<std::uint64_t> size_impl() const override { return inner_.size(); }

 private:
  MemoryStorage inner_;
  UniqueFd always_ready_{::eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::vector<IoDone> finished_;
  std::vector<std::pair<std::uint64_t, Seen>> in_flight_;
  unsigned calls_ = 0;
};

class WriteQueueTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kChunkBlocks = 8;

  void SetUp() override {
    auto pool = IoBufferPool::make(kChunkBlocks * kFileBlockBytes, 6);
    ASSERT_TRUE(pool.has_value());
    pool_ = std::move(*pool);
    queue_ = std::make_unique<WriteQueue>(file_, *pool_, cancel_, clock_);
  }
  void TearDown() override { queue_.reset(); }

  void put(WriteStream stream, std::uint64_t block, unsigned char value,
           WriteQueue::Place place = WriteQueue::Place::fresh) {
    const Result<FileBlock> at = queue_->stage(stream, block * kFileBlockBytes, place);
    ASSERT_TRUE(at.has_value()) << at.error().message;
    std::fill(at->begin(), at->end(), std::byte{value});
  }
  std::byte value_at(std::uint64_t block) const { return disk_.live.at(block * kFileBlockBytes); }

  MonotonicClock clock_;
  CancelSignal cancel_;
  MemoryDisk disk_;
  std::unique_ptr<IoBufferPool> pool_;
  WatchingStorage file_{disk_};
  std::unique_ptr<WriteQueue> queue_;
};

TEST_F(WriteQueueTest, BlocksThatFollowEachOtherAreOneWrite) {
  for (unsigned char i = 0; i < kChunkBlocks; ++i) put(WriteStream::append, i, i);
  ASSERT_TRUE(queue_->drain());
  ASSERT_EQ(file_.seen.size(), 1U);
  EXPECT_EQ(file_.seen[0].bytes, kChunkBlocks * kFileBlockBytes);
  EXPECT_EQ(value_at(5), std::byte{5});
}

TEST_F(WriteQueueTest, AGapBeginsANewWrite) {
  for (const std::uint64_t block : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{5}}) {
    put(WriteStream::append, block, 1);
  }
  ASSERT_TRUE(queue_->drain());
  ASSERT_EQ(file_.seen.size(), 2U);
  EXPECT_EQ(file_.seen[0].bytes, 2 * kFileBlockBytes);
}

TEST_F(WriteQueueTest, StreamsThatAlternateDoNotCutEachOthersRuns) {
  for (unsigned char i = 0; i < 4; ++i) {
    put(WriteStream::append, i, 1);
    put(WriteStream::overwrite, 100U + i, 2, WriteQueue::Place::rewritten);
  }
  ASSERT_TRUE(queue_->drain());
  EXPECT_EQ(file_.seen.size(), 2U);
}

TEST_F(WriteQueueTest, LentMemoryIsNeverInFlightTogetherWithAnythingInItsPlace) {
  const auto memory = AlignedMemory::map(4 * kFileBlockBytes);
  ASSERT_TRUE(memory.has_value());
  const std::span<std::byte> lent(memory->data(), 4 * kFileBlockBytes);
  for (unsigned char round = 0; round < 40; ++round) {
    put(WriteStream::overwrite, 4, round, WriteQueue::Place::rewritten);
    std::fill(lent.begin(), lent.end(), std::byte{round});
    ASSERT_TRUE(queue_->write_lent(lent, 2 * kFileBlockBytes, WriteQueue::Place::rewritten));
    put(WriteStream::overwrite, 5, round, WriteQueue::Place::rewritten);
  }
  ASSERT_TRUE(queue_->drain());
  EXPECT_FALSE(file_.overlapped);
  EXPECT_EQ(value_at(2), std::byte{39});
  EXPECT_EQ(value_at(4), std::byte{39});
}

TEST_F(WriteQueueTest, TwoWritesToOnePlaceAreNeverInFlightTogether) {
  for (unsigned char round = 0; round < 40; ++round) {
    for (const std::uint64_t block : {std::uint64_t{3}, std::uint64_t{4}, std::uint64_t{9}}) {
      put(WriteStream::overwrite, block, round, WriteQueue::Place::rewritten);
    }
  }
  ASSERT_TRUE(queue_->drain());
  EXPECT_FALSE(file_.overlapped);
  EXPECT_EQ(value_at(3), std::byte{39});
  EXPECT_EQ(value_at(4), std::byte{39});
  EXPECT_EQ(value_at(9), std::byte{39});
}

TEST_F(WriteQueueTest, ABlockStillInAnotherStreamsRunIsWrittenFirst) {
  put(WriteStream::append, 7, 1);
  put(WriteStream::overwrite, 7, 2, WriteQueue::Place::rewritten);
  ASSERT_TRUE(queue_->drain());
  EXPECT_FALSE(file_.overlapped);
  EXPECT_EQ(value_at(7), std::byte{2});
}

TEST_F(WriteQueueTest, ManyScatteredBlocksAreInFlightAtOnce) {
  for (std::uint64_t i = 0; i < 200; ++i) put(WriteStream::append, 2 * i, 1);
  ASSERT_TRUE(queue_->drain());
  EXPECT_EQ(file_.seen.size(), 200U);
  EXPECT_GE(file_.most_in_flight, 16U);
}

TEST_F(WriteQueueTest, TheFirstErrorIsFinal) {
  disk_.bytes_max = kFileBlockBytes;
  put(WriteStream::append, 3, 1);
  EXPECT_EQ(queue_->drain().error().code, Errc::no_space);
  disk_.bytes_max = ~std::uint64_t{0};
  EXPECT_EQ(queue_->drain().error().code, Errc::no_space);
  EXPECT_EQ(queue_->stage(WriteStream::append, 0, WriteQueue::Place::fresh).error().code,
            Errc::no_space);
}

TEST_F(WriteQueueTest, AReservationThatFailsForSpaceIsNoError) {
  disk_.bytes_max = kFileBlockBytes;
  ASSERT_TRUE(queue_->allocate(0, 100 * kFileBlockBytes));
  put(WriteStream::append, 0, 1);
  EXPECT_TRUE(queue_->drain());
}

}  // namespace
}  // namespace pageferry
