// The memory that hook and pager share: what one puts in the other reads, nobody else can write, and what is not right is refused.
#include "vmstate/hook_segment.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmstate/hook_progress.h"
#include "vmstate/sealed_memory.h"

namespace pageferry {
namespace {

using testing::HasSubstr;

constexpr std::uint64_t kSegmentPages = 40'000;  // of two pages of bitmap

UniqueFd duplicate(int fd) {
  return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
}

class HookSegmentTest : public testing::Test {
 protected:
  void SetUp() override {
    auto made = HookSegment::make(kSegmentPages);
    ASSERT_TRUE(made) << made.error().message;
    segment_.emplace(std::move(*made));
  }
  HookSegmentView view() const {
    auto opened = HookSegmentView::open(duplicate(segment_->descriptor()), kSegmentPages);
    EXPECT_TRUE(opened) << opened.error().message;
    return std::move(*opened);
  }
  std::optional<HookSegment> segment_;
};

TEST_F(HookSegmentTest, DirtyPagesAreReadAsTheyWerePut) {
  DirtyBitmap dirty(kSegmentPages);
  dirty.set({PageIndex{63}, 2});
  dirty.set({PageIndex{kSegmentPages - 1}, 1});
  segment_->put_dirty(dirty, 7);
  DirtyBitmap seen(kSegmentPages);
  ASSERT_TRUE(view().dirty_into(seen, 7));
  EXPECT_EQ(seen, dirty);
}

TEST_F(HookSegmentTest, AnotherCollectionThanWasSaidIsRefused) {
  segment_->put_dirty(DirtyBitmap(kSegmentPages), 7);
  DirtyBitmap seen(kSegmentPages);
  const auto read = view().dirty_into(seen, 8);
  ASSERT_FALSE(read);
  EXPECT_THAT(read.error().message, HasSubstr("holds collection 7, the hook said 8"));
}

TEST_F(HookSegmentTest, RemovedPagesAddUp) {
  segment_->add_removed({PageIndex{0}, 3});
  segment_->add_removed({PageIndex{kSegmentPages - 2}, 2});
  DirtyBitmap removed(kSegmentPages);
  view().removed_into(removed);
  EXPECT_EQ(removed.count(), 5U);
}

TEST_F(HookSegmentTest, WhoReceivesItCannotWriteIt) {
  const int fd = segment_->descriptor();
  const std::uint64_t word = 1;
  EXPECT_LT(::pwrite(fd, &word, sizeof word, 0), 0);
  EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  const UniqueFd again(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  EXPECT_LT(::pwrite(again.get(), &word, sizeof word, 0), 0) << "nor one who opens it again";
  EXPECT_NE(::ftruncate(again.get(), 0), 0);
}

TEST_F(HookSegmentTest, ASegmentOfAnotherSizeIsRefused) {
  const auto opened = HookSegmentView::open(duplicate(segment_->descriptor()), 10 * kSegmentPages);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Errc::invalid);
}

TEST_F(HookSegmentTest, MemoryThatCanShrinkIsRefused) {
  const UniqueFd memory(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(memory.get(), static_cast<off_t>(hook_segment_bytes(kSegmentPages))), 0);
  const auto opened = HookSegmentView::open(memory, kSegmentPages);
  ASSERT_FALSE(opened);
  EXPECT_THAT(opened.error().message, HasSubstr("has the seals"));
}

TEST_F(HookSegmentTest, SomethingElseIsRefused) {
  const auto memory = make_sealed_memory("test", hook_segment_bytes(kSegmentPages));
  ASSERT_TRUE(memory);
  const auto opened = HookSegmentView::open(*memory, kSegmentPages);
  ASSERT_FALSE(opened);
  EXPECT_THAT(opened.error().message, HasSubstr("begins with 0x0"));
}

TEST(HookProgressTest, IsReadAsItWasWritten) {
  auto writer = HookProgressWriter::make();
  ASSERT_TRUE(writer) << writer.error().message;
  const auto reader = HookProgressReader::open(duplicate(writer->descriptor()));
  ASSERT_TRUE(reader) << reader.error().message;
  const HookProgress progress{.phase = HookPhase::restoring,
                              .epoch = 2,
                              .pages_total = 100,
                              .pages_done = 60,
                              .fault_p99_us = 9,
                              .removed_pages = 1};
  writer->write(progress);
  ASSERT_TRUE(reader->read());
  EXPECT_EQ(*reader->read(), progress);
}

// Words 2 (changes) and 4 (phase): docs/hook-protocol.md.
TEST(HookProgressTest, AWriterThatDiedHalfWayIsBusyAndAPhaseThatIsUnknownRefused) {
  const auto memory = make_sealed_memory("test", kHookProgressBytes);
  ASSERT_TRUE(memory);
  auto words = SharedMapping::map(*memory, kHookProgressBytes, SharedMapping::Access::read_write);
  ASSERT_TRUE(words);
  EXPECT_FALSE(HookProgressReader::open(*memory)) << "no magic";
  words->store(0, 0x53474f5250464750);
  words->store(1, 1);
  const auto reader = HookProgressReader::open(*memory);
  ASSERT_TRUE(reader) << reader.error().message;
  words->store(2, 1);
  ASSERT_FALSE(reader->read());
  EXPECT_EQ(reader->read().error().code, Errc::busy);
  words->store(2, 2);
  words->store(4, 99);
  ASSERT_FALSE(reader->read());
  EXPECT_EQ(reader->read().error().code, Errc::invalid);
}

TEST(SealedMemoryTest, ContentIsForGood) {
  const std::vector<std::byte> content(100, std::byte{7});
  const auto memory = make_sealed_memory("test", content);
  ASSERT_TRUE(memory);
  EXPECT_TRUE(check_sealed_memory("it", *memory, 100, Sealed::content));
  EXPECT_FALSE(check_sealed_memory("it", *memory, 101, Sealed::content));
  EXPECT_LT(::pwrite(memory->get(), "x", 1, 0), 0);
  const auto read = read_sealed_memory(*memory, 100);
  ASSERT_TRUE(read);
  EXPECT_EQ(*read, content);
}

}  // namespace
}  // namespace pageferry
