// What no page table shows, and the rules of pager/dirty_source.h that close it. Each hole has a test without the rule, in which
// the write is not in the collection (were it there one day, the rule could go), and one with it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#include "fakes/pinned_buffer.h"
#include "fakes/tracked_guest.h"

namespace pageferry {
namespace {

using namespace testing_support;

constexpr std::byte kNew{0x77};

class DirtySourceHolesTest : public testing::TestWithParam<Tracking> {
 protected:
  DirtySourceHolesTest() {
    for (std::uint64_t page = 0; page < guest_.kPages; ++page) guest_.write(page);
    file_.reset(::memfd_create("disk", MFD_CLOEXEC));
    const std::vector<std::byte> content(kPageSizeBytes, kNew);
    EXPECT_EQ(::pwrite(file_.get(), content.data(), content.size(), 0),
              static_cast<ssize_t>(content.size()));
  }
  void expect_unseen(std::uint64_t page, std::byte content) {
    EXPECT_EQ(guest_.collected(), guest_.nothing());
    EXPECT_EQ(guest_.read(page), content) << "nothing was written: the test proves nothing";
  }
  void expect_seen(std::uint64_t page) {
    EXPECT_EQ(guest_.collected(), guest_.with({run(page, 1)}));
    EXPECT_EQ(guest_.collected(), guest_.nothing());
  }
  void write_to_the_file(std::uint64_t page) const {
    const std::vector<std::byte> content(kPageSizeBytes, kNew);
    ASSERT_EQ(::pwrite(guest_.ram.file(), content.data(), content.size(),
                       static_cast<off_t>(bytes_of_pages(page))),
              static_cast<ssize_t>(content.size()));
  }
  void write_to_another_mapping(std::uint64_t page) const {
    void* const other = ::mmap(nullptr, guest_.ram.bytes(), PROT_READ | PROT_WRITE, MAP_SHARED,
                               guest_.ram.file(), 0);
    ASSERT_NE(other, MAP_FAILED);
    static_cast<std::byte*>(other)[bytes_of_pages(page)] = kNew;
    ::munmap(other, guest_.ram.bytes());
  }
  void remove(std::uint64_t page) const {
    ASSERT_EQ(::madvise(guest_.page(page), kPageSizeBytes, MADV_REMOVE), 0);
  }
  void punch_hole(std::uint64_t page) const {
    ASSERT_EQ(
        ::fallocate(guest_.ram.file(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(bytes_of_pages(page)), static_cast<off_t>(kPageSizeBytes)),
        0);
  }

  TrackedGuest guest_{GetParam(), Backing::memfd};
  UniqueFd file_;
};

std::string name_of_tracking(const testing::TestParamInfo<Tracking>& info) {
  return name_of(info.param);
}
INSTANTIATE_TEST_SUITE_P(All, DirtySourceHolesTest,
                         testing::Values(Tracking::async, Tracking::sync, Tracking::sync_populated),
                         name_of_tracking);

// --- pinned pages: D1, D2 ---

TEST_P(DirtySourceHolesTest, ARegisteredBufferIsWrittenUnseen) {
  guest_.start_and_collect_all();
  PinnedBuffer buffer(guest_.page(30), kPageSizeBytes);
  expect_seen(30);  // pinning a page for writing counts as a write
  buffer.fill_from(file_.get());
  expect_unseen(30, kNew);
}

TEST_P(DirtySourceHolesTest, ARegisteredBufferThatIsReportedIsSeen) {
  guest_.start_and_collect_all();
  PinnedBuffer buffer(guest_.page(30), kPageSizeBytes);
  guest_.collected();
  buffer.fill_from(file_.get());
  guest_.source->mark_dirty(run(30, 1));
  expect_seen(30);
}

// A read with O_DIRECT pins its pages when it is submitted. If it has ended before the collection, its page is in there.
TEST_P(DirtySourceHolesTest, APinThatWasDrainedBeforeTheCollectionIsSeen) {
  guest_.start_and_collect_all();
  {
    PinnedBuffer buffer(guest_.page(30), kPageSizeBytes);
    buffer.fill_from(file_.get());
  }
  expect_seen(30);
  EXPECT_EQ(guest_.read(30), kNew);
}

// --- other ways to the same file: D2 ---

TEST_P(DirtySourceHolesTest, AWriteThroughAnotherMappingIsUnseen) {
  guest_.start_and_collect_all();
  write_to_another_mapping(31);
  expect_unseen(31, kNew);
}

TEST_P(DirtySourceHolesTest, AWriteThroughAnotherMappingThatIsReportedIsSeen) {
  guest_.start_and_collect_all();
  write_to_another_mapping(31);
  guest_.source->mark_dirty(run(31, 1));
  expect_seen(31);
}

TEST_P(DirtySourceHolesTest, AWriteToTheFileIsUnseen) {
  guest_.start_and_collect_all();
  write_to_the_file(32);
  expect_unseen(32, kNew);
}

TEST_P(DirtySourceHolesTest, AWriteToTheFileThatIsReportedIsSeen) {
  guest_.start_and_collect_all();
  write_to_the_file(32);
  guest_.source->mark_dirty(run(32, 1));
  expect_seen(32);
}

// --- holes: D3 ---

TEST_P(DirtySourceHolesTest, APageRemovedFromTheFileIsUnseen) {
  guest_.start_and_collect_all();
  remove(33);
  expect_unseen(33, std::byte{0});
}

TEST_P(DirtySourceHolesTest, APageRemovedFromTheFileAndReportedIsSeen) {
  guest_.start_and_collect_all();
  remove(33);
  guest_.source->discard(run(33, 1));
  expect_seen(33);
}

TEST_P(DirtySourceHolesTest, AHolePunchedIntoTheFileIsUnseen) {
  guest_.start_and_collect_all();
  punch_hole(34);
  expect_unseen(34, std::byte{0});
}

TEST_P(DirtySourceHolesTest, AHolePunchedIntoTheFileAndReportedIsSeen) {
  guest_.start_and_collect_all();
  punch_hole(34);
  guest_.source->discard(run(34, 1));
  expect_seen(34);
}

TEST_P(DirtySourceHolesTest, AWriteIntoAHoleThatWasReportedIsSeen) {
  guest_.start_and_collect_all();
  remove(33);
  guest_.source->discard(run(33, 1));
  expect_seen(33);
  guest_.write(33);
  expect_seen(33);
}

// --- anonymous memory ---

class DirtySourceAnonymousHolesTest : public testing::TestWithParam<Tracking> {
 protected:
  DirtySourceAnonymousHolesTest() {
    for (std::uint64_t page = 0; page < guest_.kPages; ++page) guest_.write(page);
  }
  void drop(std::uint64_t page) const {
    ASSERT_EQ(::madvise(guest_.page(page), kPageSizeBytes, MADV_DONTNEED), 0);
  }
  TrackedGuest guest_{GetParam(), Backing::anonymous};
};

INSTANTIATE_TEST_SUITE_P(All, DirtySourceAnonymousHolesTest,
                         testing::Values(Tracking::async, Tracking::sync, Tracking::sync_populated),
                         name_of_tracking);

TEST_P(DirtySourceAnonymousHolesTest, ADroppedPageThatIsReportedIsSeenAndTrackedOn) {
  guest_.start_and_collect_all();
  drop(35);
  guest_.source->discard(run(35, 1));
  EXPECT_EQ(guest_.collected(), guest_.with({run(35, 1)}));
  EXPECT_EQ(guest_.collected(), guest_.nothing());
  guest_.write(35);
  EXPECT_EQ(guest_.collected(), guest_.with({run(35, 1)}));
}

// Asynchronous tracking sees it by itself. Synchronous tracking loses the page for good: also later writes to it are unseen.
TEST_P(DirtySourceAnonymousHolesTest, ADroppedPageThatIsNotReportedIsLostForSynchronousTracking) {
  guest_.start_and_collect_all();
  drop(35);
  const bool by_itself = GetParam() == Tracking::async;
  EXPECT_EQ(guest_.collected(), by_itself ? guest_.with({run(35, 1)}) : guest_.nothing());
  guest_.write(35);
  EXPECT_EQ(guest_.collected(), by_itself ? guest_.with({run(35, 1)}) : guest_.nothing());
}

}  // namespace
}  // namespace pageferry
