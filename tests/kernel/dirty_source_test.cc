// The sources that follow the page tables of the process, on the real userfaultfd: what they see. What they do not see is in
// dirty_source_holes_test.cc. Every test runs asynchronously, synchronously, and synchronously as on a kernel that cannot protect
// absent pages; on anonymous memory and on a memfd.
//
// The synchronous ones need /dev/userfaultfd or CAP_SYS_PTRACE.
#include "pager/dirty_source.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/random.h>

#include <atomic>
#include <numeric>
#include <thread>
#include <tuple>

#include "fakes/tracked_guest.h"
#include "pager/write_protect_self_test.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::HasSubstr;

class DirtySourceTest : public testing::TestWithParam<std::tuple<Tracking, Backing>> {
 protected:
  static Tracking tracking() { return std::get<0>(GetParam()); }
  static Backing backing() { return std::get<1>(GetParam()); }
  TrackedGuest guest_{tracking(), backing()};
};

INSTANTIATE_TEST_SUITE_P(All, DirtySourceTest,
                         testing::Combine(testing::Values(Tracking::async, Tracking::sync,
                                                          Tracking::sync_populated),
                                          testing::Values(Backing::anonymous, Backing::memfd)),
                         name_of_tracked_backing);

TEST_P(DirtySourceTest, EveryPageIsDirtyOnce) {
  guest_.write(3);
  guest_.start_and_collect_all();
  EXPECT_EQ(guest_.collected(), guest_.nothing());
}

TEST_P(DirtySourceTest, AWriteIsSeenOnceInEachBlock) {
  for (std::uint64_t page = 0; page < guest_.kPages; ++page) guest_.write(page);
  guest_.start_and_collect_all();
  for (const std::uint64_t page : {0U, 63U, 64U, 99U, 100U, 127U}) guest_.write(page);
  EXPECT_EQ(guest_.collected(), guest_.with({run(0, 1), run(63, 2), run(99, 2), run(127, 1)}));
  EXPECT_EQ(guest_.collected(), guest_.nothing());
}

TEST_P(DirtySourceTest, AWriteToAPageThatWasNeverThereIsSeen) {
  guest_.start_and_collect_all();
  guest_.write(17);
  guest_.write(101);
  EXPECT_EQ(guest_.collected(), guest_.with({run(17, 1), run(101, 1)}));
}

TEST_P(DirtySourceTest, ReadingIsNoWrite) {
  guest_.write(5);
  guest_.start_and_collect_all();
  EXPECT_EQ(guest_.read(5), std::byte{0x5a});
  EXPECT_EQ(guest_.read(6), std::byte{0});
  EXPECT_EQ(guest_.collected(), guest_.nothing());
}

TEST_P(DirtySourceTest, APageThatWasReadIntoBeingIsSeenWhenItIsWritten) {
  guest_.start_and_collect_all();
  EXPECT_EQ(guest_.read(6), std::byte{0});
  guest_.write(6);
  EXPECT_EQ(guest_.collected(), guest_.with({run(6, 1)}));
}

TEST_P(DirtySourceTest, AWriteOfASystemCallIsSeen) {
  guest_.write(5);
  guest_.start_and_collect_all();
  ASSERT_EQ(::getrandom(guest_.page(5), 1, 0), 1);
  const UniqueFd zeros(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(::read(zeros.get(), guest_.page(40), bytes_of_pages(2)),
            static_cast<ssize_t>(bytes_of_pages(2)));
  EXPECT_EQ(guest_.collected(), guest_.with({run(5, 1), run(40, 2)}));
}

// Collected and armed first, read afterwards: what is written in between is in the next collection.
TEST_P(DirtySourceTest, AWriteBetweenCollectingAndReadingIsSeenNextTime) {
  guest_.start_and_collect_all();
  guest_.write(9, std::byte{1});
  EXPECT_EQ(guest_.collected(), guest_.with({run(9, 1)}));
  guest_.write(9, std::byte{2});
  EXPECT_EQ(guest_.read(9), std::byte{2});
  EXPECT_EQ(guest_.collected(), guest_.with({run(9, 1)}));
}

TEST_P(DirtySourceTest, WhatIsReportedByHandIsDirtyOnce) {
  guest_.start_and_collect_all();
  guest_.source->mark_dirty(run(98, 4));
  guest_.source->discard(run(120, 1));
  EXPECT_EQ(guest_.collected(), guest_.with({run(98, 4), run(120, 1)}));
  EXPECT_EQ(guest_.collected(), guest_.nothing());
}

TEST_P(DirtySourceTest, OfAPausedGuestAllThatItWroteIsCollected) {
  guest_.start_and_collect_all();
  for (const std::uint64_t page : {0U, 63U, 64U, 99U, 100U, 127U}) guest_.write(page);
  guest_.source->mark_dirty(run(80, 2));
  EXPECT_EQ(guest_.collected_paused(),
            guest_.with({run(0, 1), run(63, 2), run(80, 2), run(99, 2), run(127, 1)}));
}

TEST_P(DirtySourceTest, AReportBehindThePausedCollectionIsNotLost) {
  guest_.start_and_collect_all();
  guest_.collected_paused();
  guest_.source->mark_dirty(run(98, 4));
  DirtyBitmap late(guest_.kPages);
  guest_.source->take_reports_into(late);
  EXPECT_EQ(late, guest_.with({run(98, 4)}));
}

// The migration failed: nothing was armed, and nothing may be missed.
TEST_P(DirtySourceTest, AGuestThatGoesOnAfterAPausedCollectionIsFollowed) {
  guest_.start_and_collect_all();
  guest_.write(9, std::byte{1});
  EXPECT_EQ(guest_.collected_paused(), guest_.with({run(9, 1)}));
  guest_.write(9, std::byte{2});
  guest_.write(110);
  DirtyBitmap missing = guest_.with({run(9, 1), run(110, 1)});
  missing.remove(guest_.collected());
  EXPECT_EQ(missing, guest_.nothing());
  EXPECT_EQ(guest_.collected(), guest_.nothing());
}

TEST_P(DirtySourceTest, MemoryIsFreeAfterStop) {
  guest_.start_and_collect_all();
  ASSERT_TRUE(guest_.source->stop());
  for (std::uint64_t page = 0; page < guest_.kPages; ++page) guest_.write(page);
  guest_.start_and_collect_all();
  EXPECT_EQ(guest_.collected(), guest_.nothing());
  guest_.write(50);
  EXPECT_EQ(guest_.collected(), guest_.with({run(50, 1)}));
}

TEST_P(DirtySourceTest, MemoryOfAnotherSourceIsBusy) {
  guest_.start_and_collect_all();
  const auto second =
      make_source(tracking(), guest_.layout, {guest_.ram.address(), guest_.bios.address()});
  const auto started = second->start();
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, Errc::busy) << started.error().message;
  EXPECT_FALSE(second->is_started());
  guest_.write(50);
  EXPECT_EQ(guest_.collected(), guest_.with({run(50, 1)}));
}

TEST_P(DirtySourceTest, BlocksOfHugetlbAreRefused) {
  MemoryLayout layout = *MemoryLayout::make({RamBlock{.name = "pc.ram",
                                                      .length_bytes = 512 * kPageSizeBytes,
                                                      .backing_page_bytes = 512 * kPageSizeBytes,
                                                      .first_page = {}}});
  const auto started = make_source(tracking(), layout, {guest_.ram.address()})->start();
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, Errc::unsupported) << started.error().message;
}

// Two threads write all the time; a copy that follows the collections is equal to the memory in the end.
TEST_P(DirtySourceTest, NoWriteOfAnotherThreadIsLost) {
  guest_.start_and_collect_all();
  std::vector<std::byte> copy(bytes_of_pages(guest_.kPages));
  std::atomic<int> running = 2;
  const auto write_many = [&](std::uint64_t stride) {
    for (std::uint64_t i = 0; i < 20'000; ++i) {
      const std::uint64_t page = i * stride % guest_.kPages;
      *static_cast<volatile std::byte*>(guest_.page(page) + stride) = static_cast<std::byte>(i);
    }
    --running;
  };
  std::thread first(write_many, 7);
  std::thread second(write_many, 13);
  bool last = false;
  do {
    last = running == 0;
    const DirtyBitmap dirty = guest_.collected();
    for (std::uint64_t page = 0; page < guest_.kPages; ++page) {
      if (!dirty.is_set(PageIndex{page})) continue;
      const auto* const from = static_cast<const volatile std::byte*>(guest_.page(page));
      copy[bytes_of_pages(page) + 7] = from[7];
      copy[bytes_of_pages(page) + 13] = from[13];
    }
  } while (!last);
  first.join();
  second.join();
  for (std::uint64_t page = 0; page < guest_.kPages; ++page) {
    EXPECT_EQ(copy[bytes_of_pages(page) + 7], guest_.page(page)[7]) << page;
    EXPECT_EQ(copy[bytes_of_pages(page) + 13], guest_.page(page)[13]) << page;
  }
}

// Tracking breaks huge pages up as they are written: the other 511 pages of each stay clean. Except on a memfd, asynchronously:
// there a write takes the whole huge page out of the page tables, and all of it counts as written, each time; or, once the VMM
// has advised against huge pages, the first time.
TEST_P(DirtySourceTest, PagesOfATransparentHugePageAreTrackedOneByOne) {
  constexpr std::uint64_t kHugePages = 4;
  constexpr std::uint64_t kPages = kHugePages * kPagesPerHuge;
  const UserfaultMemory memory(bytes_of_pages(kPages + kPagesPerHuge), backing());
  const std::uint64_t huge_bytes = bytes_of_pages(kPagesPerHuge);
  const std::uint64_t begin = (memory.address() + huge_bytes - 1) / huge_bytes * huge_bytes;
  std::byte* const data = memory.data() + (begin - memory.address());
  if (backing() == Backing::memfd) {  // the file's first page where a huge page can begin
    ASSERT_NE(::mmap(data, bytes_of_pages(kPages), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                     memory.file(), 0),
              MAP_FAILED);
  }
  ASSERT_EQ(::madvise(data, bytes_of_pages(kPages), MADV_HUGEPAGE), 0);
  std::memset(data, 1, bytes_of_pages(kPages));
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1: now, whatever the memory looks like
  ASSERT_EQ(::madvise(data, bytes_of_pages(kPages), kCollapse), 0) << std::strerror(errno);
  const MemoryLayout layout = layout_of({{"pc.ram", kPages}});
  const auto source = make_source(tracking(), layout, {begin});
  const auto started = source->start();
  ASSERT_TRUE(started) << started.error().message;
  DirtyBitmap dirty(kPages);
  ASSERT_TRUE(source->collect_into(dirty));
  EXPECT_EQ(dirty.count(), kPages);
  const auto expect_seen = [&](std::initializer_list<std::uint64_t> pages, std::uint64_t around) {
    DirtyBitmap expected(kPages);
    for (const std::uint64_t page : pages) {
      data[bytes_of_pages(page)] = std::byte{2};
      expected.set(run(page / around * around, around));
    }
    DirtyBitmap written(kPages);
    ASSERT_TRUE(source->collect_into(written));
    EXPECT_EQ(written, expected);
  };
  const bool whole = tracking() == Tracking::async && backing() == Backing::memfd;
  expect_seen({0, 511, 512, 1'600}, whole ? kPagesPerHuge : 1);
  expect_seen({0, 511, 512, 1'600, 1'601}, whole ? kPagesPerHuge : 1);
  expect_seen({}, 1);
  ASSERT_EQ(::madvise(data, bytes_of_pages(kPages), MADV_NOHUGEPAGE), 0);
  expect_seen({0, 511, 512, 1'600}, whole ? kPagesPerHuge : 1);
  expect_seen({0, 511, 512, 1'600, 1'601}, 1);
}

// More separate pages than one answer of the kernel holds.
TEST_P(DirtySourceTest, EverySecondPageOfALargeBlockIsSeen) {
  constexpr std::uint64_t kPages = 20'000;
  const UserfaultMemory memory(bytes_of_pages(kPages), backing());
  const MemoryLayout layout = layout_of({{"pc.ram", kPages}});
  const auto source = make_source(tracking(), layout, {memory.address()});
  ASSERT_TRUE(source->start());
  DirtyBitmap all(kPages);
  ASSERT_TRUE(source->collect_into(all));
  DirtyBitmap expected(kPages);
  for (std::uint64_t page = 1; page < kPages; page += 2) {
    *memory.page(page) = std::byte{1};
    expected.set(run(page, 1));
  }
  DirtyBitmap written(kPages);
  ASSERT_TRUE(source->collect_into(written));
  EXPECT_EQ(written, expected);
}

// --- what only one of them does ---

TEST(AsyncWriteProtectSource, MemoryThatWasMappedAnewIsAnErrorAndNotClean) {
  TrackedGuest guest(Tracking::async, Backing::anonymous);
  guest.start_and_collect_all();
  ASSERT_NE(::mmap(guest.page(20), kPageSizeBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
            MAP_FAILED);
  DirtyBitmap dirty(guest.kPages);
  const auto done = guest.source->collect_into(dirty);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Errc::vmm);
  EXPECT_THAT(done.error().message, HasSubstr("mapped anew"));
}

TEST(SyncWriteProtectSource, AWriterThatWaitsIsFreeAfterStop) {
  TrackedGuest guest(Tracking::sync, Backing::anonymous);
  guest.start_and_collect_all();
  std::thread writer([&] {
    for (int i = 0; i < 2'000; ++i) guest.write(static_cast<std::uint64_t>(i) % guest.kPages);
  });
  for (int i = 0; i < 20; ++i) guest.collected();
  EXPECT_TRUE(guest.source->stop());
  writer.join();
}

TEST(WriteProtectChoice, IsAsynchronousWhereTheSelfTestPasses) {
  TrackedGuest guest(Tracking::async, Backing::memfd);
  WriteProtectChoice choice =
      choose_write_protect_source(guest.layout, {guest.ram.address(), guest.bios.address()});
  const auto passed = async_write_protect_self_test();
  EXPECT_EQ(choice.why_not_async, passed ? "" : passed.error().message);
  EXPECT_EQ(dynamic_cast<AsyncWriteProtectSource*>(choice.source.get()) != nullptr,
            passed.has_value());
  guest.source = std::move(choice.source);
  guest.start_and_collect_all();
  guest.write(77);
  EXPECT_EQ(guest.collected(), guest.with({run(77, 1)}));
}

TEST(WriteProtectSelfTest, PassesOnAKernelThatHasIt) {
  const auto features = userfault_features();
  ASSERT_TRUE(features) << features.error().message;
  const auto passed = async_write_protect_self_test();
  EXPECT_EQ(passed.has_value(), (*features & kUserfaultWpAsync) != 0)
      << (passed ? "" : passed.error().message);
}

}  // namespace
}  // namespace pageferry
