// Prefetcher: every absent page is chosen once, in the order that was asked for, in runs that one
// read can serve.
#include "pager/prefetch_order.h"

#include <gtest/gtest.h>

#include <vector>

#include "fakes/memory_page_supply.h"
#include "fakes/page_content.h"

namespace pageferry {
namespace {

using namespace testing_support;

using testing_support::MemoryPageSupply;
using Kind = PrefetchChoice::Kind;

constexpr std::uint64_t kRegion = kPrefetchRegionPages;

MemoryLayout one_block(std::uint64_t pages) {
  return layout_of_blocks({RamBlock{.name = "ram", .length_bytes = bytes_of_pages(pages)}});
}

struct Guest {
  explicit Guest(MemoryLayout memory)
      : layout(std::move(memory)), supply(layout), sent(layout.pages()) {}
  void store(std::uint64_t first, std::uint64_t pages, std::uint32_t version = 1) {
    for (std::uint64_t i = 0; i < pages; ++i) supply.set_filled(PageIndex{first + i}, 1, version);
  }
  // The next choice that is one, taken.
  PrefetchChoice next(Prefetcher& prefetcher) {
    PrefetchChoice choice = prefetcher.next();
    while (choice.kind == Kind::again) choice = prefetcher.next();
    if (choice.kind != Kind::done) sent.take(choice.run);
    return choice;
  }
  MemoryLayout layout;
  MemoryPageSupply supply;
  SentMap sent;
};

TEST(Prefetcher, NoneChoosesNothing) {
  Guest guest(one_block(100));
  guest.store(0, 100);
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::none);
  EXPECT_EQ(prefetcher.next().kind, Kind::done);
}

TEST(Prefetcher, LinearChoosesStoredPagesInOrderAndZeroPagesLast) {
  Guest guest(one_block(200));
  guest.store(0, 10);
  guest.store(90, 100, 5);
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::linear);
  EXPECT_EQ(guest.next(prefetcher).run, run(0, 10));
  EXPECT_EQ(guest.next(prefetcher).run, run(90, kPrefetchRunPagesMax));
  EXPECT_EQ(guest.next(prefetcher).run, run(154, 36));
  const PrefetchChoice zero = guest.next(prefetcher);
  EXPECT_EQ(zero.kind, Kind::zero);
  EXPECT_EQ(zero.run, run(10, kPrefetchRunPagesMax));
}

TEST(Prefetcher, ChoosesEveryPageExactlyOnce) {
  Guest guest(layout_of_blocks({RamBlock{.name = "a", .length_bytes = bytes_of_pages(3000)},
                                RamBlock{.name = "b", .length_bytes = bytes_of_pages(1000)}}));
  for (std::uint64_t page = 0; page < 3998; page += 3)
    guest.store(page, 2, static_cast<std::uint32_t>(page % 7));
  for (std::uint64_t page = 1; page < 4000; page += 50) guest.supply.set_tail(PageIndex{page});
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::hot);
  for (std::uint64_t fault = 5; fault < 4000; fault += 111) {
    prefetcher.note_fault(PageIndex{fault});
    prefetcher.note_fault(PageIndex{fault});
    guest.next(prefetcher);
  }
  while (guest.next(prefetcher).kind != Kind::done) {
  }
  EXPECT_EQ(guest.sent.pages_absent(), 0U);
}

TEST(Prefetcher, RunsStayInsideTheirBlock) {
  Guest guest(layout_of_blocks({RamBlock{.name = "a", .length_bytes = bytes_of_pages(10)},
                                RamBlock{.name = "b", .length_bytes = bytes_of_pages(10)}}));
  guest.store(0, 20);
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::linear);
  EXPECT_EQ(guest.next(prefetcher).run, run(0, 10));
  EXPECT_EQ(guest.next(prefetcher).run, run(10, 10));
}

TEST(Prefetcher, RunsEndWhereTheFilePlaceChanges) {
  Guest guest(one_block(20));
  guest.store(0, 20);
  guest.supply.set_tail(PageIndex{7});
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::linear);
  EXPECT_EQ(guest.next(prefetcher).run, run(0, 7));
  EXPECT_EQ(guest.next(prefetcher).run, run(7, 1));
  EXPECT_EQ(guest.next(prefetcher).run, run(8, 12));
}

TEST(Prefetcher, HotChoosesTheMostRecentlyDirtiedRegionFirst) {
  Guest guest(one_block(4 * kRegion));
  guest.store(0, 4 * kRegion);
  guest.store(1 * kRegion, 100, 3);
  guest.store(3 * kRegion, 100, 9);
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::hot);
  EXPECT_EQ(guest.next(prefetcher).run.first, PageIndex{3 * kRegion});
  while (guest.sent.absent_run(PageIndex{3 * kRegion}, 1) == 1 ||
         guest.sent.next_absent(PageIndex{3 * kRegion}, PageIndex{4 * kRegion})) {
    guest.next(prefetcher);
  }
  EXPECT_EQ(guest.next(prefetcher).run.first, PageIndex{1 * kRegion});
}

TEST(Prefetcher, ARegionWithManyRedirtiedPagesIsHotAsAWhole) {
  Guest guest(one_block(2 * kRegion));
  guest.store(0, 2 * kRegion);
  for (std::uint64_t page = kRegion; page < 2 * kRegion; page += 3) guest.store(page, 1, 2);
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::hot);
  for (std::uint64_t page = kRegion; page < 2 * kRegion; page += kPrefetchRunPagesMax) {
    EXPECT_EQ(guest.next(prefetcher).run, run(page, kPrefetchRunPagesMax));
  }
}

TEST(Prefetcher, ARegionWithFewRedirtiedPagesGivesOnlyThoseFirst) {
  Guest guest(one_block(2 * kRegion));
  guest.store(0, 2 * kRegion);
  guest.store(kRegion + 5, 2, 4);
  guest.store(kRegion + 50, 1, 2);
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::hot);
  EXPECT_EQ(guest.next(prefetcher).run, run(kRegion + 5, 2));
  EXPECT_EQ(guest.next(prefetcher).run, run(kRegion + 50, 1));
  EXPECT_EQ(guest.next(prefetcher).run, run(0, kPrefetchRunPagesMax));
}

TEST(Prefetcher, ARegionThatFaultedTwiceGoesFirstFromTheFaultUpwards) {
  Guest guest(one_block(4 * kRegion));
  guest.store(0, 4 * kRegion);
  guest.store(0, kRegion, 9);
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::hot);
  prefetcher.note_fault(PageIndex{2 * kRegion + 7});
  prefetcher.note_fault(PageIndex{2 * kRegion + 200});
  EXPECT_EQ(guest.next(prefetcher).run, run(2 * kRegion + 200, 56));
  EXPECT_EQ(guest.next(prefetcher).run, run(2 * kRegion, kPrefetchRunPagesMax));
}

TEST(Prefetcher, TheLatestFaultGoesBeforeEarlierOnes) {
  Guest guest(one_block(4 * kRegion));
  guest.store(0, 4 * kRegion);
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::hot);
  for (const std::uint64_t region : {1U, 1U, 3U, 3U}) {
    prefetcher.note_fault(PageIndex{region * kRegion});
  }
  EXPECT_EQ(guest.next(prefetcher).run.first, PageIndex{3 * kRegion});
}

TEST(Prefetcher, OneFaultInAQuietRegionRaisesNothing) {
  Guest guest(one_block(4 * kRegion));
  guest.store(0, 4 * kRegion);
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::hot);
  prefetcher.note_fault(PageIndex{2 * kRegion});
  EXPECT_EQ(guest.next(prefetcher).run.first, PageIndex{0});
}

TEST(Prefetcher, OneFaultInAHotRegionRaisesIt) {
  Guest guest(one_block(4 * kRegion));
  guest.store(0, 4 * kRegion);
  guest.store(0, 10, 9);
  guest.store(2 * kRegion, 1, 2);
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::hot);
  EXPECT_EQ(guest.next(prefetcher).run.first, PageIndex{0});
  prefetcher.note_fault(PageIndex{2 * kRegion + 100});
  while (guest.next(prefetcher).run.first < PageIndex{kRegion}) continue;
  EXPECT_TRUE(guest.sent.state(PageIndex{2 * kRegion + 100}) == PageState::in_flight);
}

TEST(Prefetcher, WhatTheStoppedGuestWroteLastGoesBeforeEverythingElse) {
  Guest guest(one_block(4 * kRegion));
  guest.store(0, 4 * kRegion);
  guest.store(0, kRegion, 9);
  guest.supply.set_recent({PageIndex{700}, PageIndex{701}, PageIndex{900}});
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::hot);
  EXPECT_EQ(guest.next(prefetcher).run, run(700, 2));
  EXPECT_EQ(guest.next(prefetcher).run, run(900, 1));
  EXPECT_EQ(guest.next(prefetcher).run.first, PageIndex{0});
}

TEST(Prefetcher, HotMeansNewerThanMostOfTheGuest) {
  Guest guest(one_block(4 * kRegion));
  guest.store(0, 4 * kRegion, 7);
  guest.store(2 * kRegion, 100, 8);
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::hot);
  EXPECT_EQ(guest.next(prefetcher).run.first, PageIndex{2 * kRegion});
}

TEST(Prefetcher, ChoosesWholeBackingPages) {
  constexpr std::uint64_t kHuge = std::uint64_t{2} << 20;
  Guest guest(layout_of_blocks(
      {RamBlock{.name = "small", .length_bytes = bytes_of_pages(3)},
       RamBlock{.name = "huge", .length_bytes = 2 * kHuge, .backing_page_bytes = kHuge}}));
  guest.store(3 + 512 + 17, 1);
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::linear);
  const PrefetchChoice first = guest.next(prefetcher);
  EXPECT_EQ(first.kind, Kind::backing);
  EXPECT_EQ(first.run, run(3 + 512, 512));
  EXPECT_EQ(guest.next(prefetcher).run, run(0, 3));
  EXPECT_EQ(guest.next(prefetcher).run, run(3, 512));
}

TEST(Prefetcher, OneCallLooksAtABoundedNumberOfPages) {
  Guest guest(one_block(4 * kPagesLookedAtMax));
  guest.store(4 * kPagesLookedAtMax - 1, 1);
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::linear);
  EXPECT_EQ(prefetcher.next().kind, Kind::again);
  EXPECT_EQ(guest.next(prefetcher).run, run(4 * kPagesLookedAtMax - 1, 1));
}

TEST(Prefetcher, RecordedChoosesWhatWasTouchedInThatOrderAndThenTheRest) {
  Guest guest(one_block(200));
  guest.store(0, 200);
  const std::vector<PageRun> touched{run(150, 20), run(10, 4), run(160, 30)};
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::recorded, touched);
  EXPECT_EQ(guest.next(prefetcher).run, run(150, 20));
  EXPECT_TRUE(prefetcher.replaying());
  EXPECT_EQ(guest.next(prefetcher).run, run(10, 4));
  EXPECT_EQ(guest.next(prefetcher).run, run(170, 20));
  EXPECT_EQ(guest.next(prefetcher).run, run(0, 10));
  EXPECT_FALSE(prefetcher.replaying());
  while (guest.next(prefetcher).kind != Kind::done) {
  }
  EXPECT_EQ(guest.sent.pages_absent(), 0U);
}

TEST(Prefetcher, RecordedStillBeginsWithWhatTheStoppedGuestWroteLast) {
  Guest guest(one_block(200));
  guest.store(0, 200);
  guest.supply.set_recent({PageIndex{5}});
  const std::vector<PageRun> touched{run(150, 20)};
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::recorded, touched);
  EXPECT_EQ(guest.next(prefetcher).run, run(5, 1));
  EXPECT_EQ(guest.next(prefetcher).run, run(150, 20));
}

TEST(Prefetcher, HotDoesNotLookAtTheRecord) {
  Guest guest(one_block(200));
  guest.store(0, 200);
  const std::vector<PageRun> touched{run(150, 20)};
  Prefetcher prefetcher(guest.supply, guest.layout, guest.sent, PrefetchOrder::hot, touched);
  EXPECT_EQ(raw(guest.next(prefetcher).run.first), 0U);
}

}  // namespace
}  // namespace pageferry
