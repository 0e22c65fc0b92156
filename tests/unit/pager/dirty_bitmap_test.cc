// DirtyBitmap and ReportedPages: every operation at the edges of the words of 64 pages, and what is taken out comes back.
#include "pager/dirty_bitmap.h"
#include "fakes/page_content.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "pager/reported_pages.h"

namespace pageferry {
namespace {

using namespace testing_support;

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<PageRun> runs_of(const DirtyBitmap& bitmap, std::uint64_t pages_max = 1'000'000) {
  std::vector<PageRun> runs;
  PageIndex from{0};
  while (const auto next = bitmap.next_run(from, pages_max)) {
    runs.push_back(*next);
    from = next->first + next->pages;
  }
  return runs;
}

DirtyBitmap with(std::uint64_t pages, std::initializer_list<PageRun> runs) {
  DirtyBitmap bitmap(pages);
  for (const PageRun& each : runs) bitmap.set(each);
  return bitmap;
}

TEST(DirtyBitmap, StartsEmpty) {
  const DirtyBitmap bitmap(130);
  EXPECT_TRUE(bitmap.empty());
  EXPECT_EQ(bitmap.count(), 0U);
  EXPECT_THAT(runs_of(bitmap), IsEmpty());
}

TEST(DirtyBitmap, OfNoPagesHasNone) {
  DirtyBitmap bitmap(0);
  bitmap.set(run(0, 0));
  EXPECT_TRUE(bitmap.empty());
  EXPECT_THAT(runs_of(bitmap), IsEmpty());
}

TEST(DirtyBitmap, SetsExactlyTheRunAtEveryEdgeOfAWord) {
  for (const std::uint64_t first : {0U, 1U, 62U, 63U, 64U, 65U, 127U, 128U}) {
    for (const std::uint64_t pages : {1U, 2U, 63U, 64U, 65U, 128U, 129U}) {
      const DirtyBitmap bitmap = with(300, {run(first, pages)});
      EXPECT_EQ(bitmap.count(), pages);
      EXPECT_THAT(runs_of(bitmap), ElementsAre(run(first, pages)));
      for (std::uint64_t page = 0; page < 300; ++page) {
        ASSERT_EQ(bitmap.is_set(PageIndex{page}), page >= first && page < first + pages) << page;
      }
    }
  }
}

TEST(DirtyBitmap, ClearsExactlyTheRunAtEveryEdgeOfAWord) {
  for (const std::uint64_t first : {1U, 62U, 63U, 64U, 65U, 128U}) {
    for (const std::uint64_t pages : {1U, 63U, 64U, 65U, 129U}) {
      DirtyBitmap bitmap = with(300, {run(0, 300)});
      bitmap.clear(run(first, pages));
      EXPECT_EQ(bitmap.count(), 300 - pages);
      EXPECT_THAT(runs_of(bitmap),
                  ElementsAre(run(0, first), run(first + pages, 300 - first - pages)));
    }
  }
}

TEST(DirtyBitmap, CountsAPageThatIsSetTwiceOnce) {
  EXPECT_EQ(with(100, {run(10, 60), run(50, 30)}).count(), 70U);
}

TEST(DirtyBitmap, CountsAPageThatIsClearedTwiceOnce) {
  DirtyBitmap bitmap = with(100, {run(10, 60)});
  bitmap.clear(run(0, 20));
  bitmap.clear(run(0, 30));
  EXPECT_EQ(bitmap.count(), 40U);
}

TEST(DirtyBitmap, TheLastPageIsFoundAndNothingBehindIt) {
  EXPECT_THAT(runs_of(with(65, {run(64, 1)})), ElementsAre(run(64, 1)));
  EXPECT_THAT(runs_of(with(64, {run(63, 1)})), ElementsAre(run(63, 1)));
  EXPECT_THAT(runs_of(with(128, {run(0, 128)})), ElementsAre(run(0, 128)));
  EXPECT_EQ(with(65, {run(64, 1)}).next_run(PageIndex{65}, 1), std::nullopt);
}

TEST(DirtyBitmap, ALongRunIsCutWhereTheCallerWantsIt) {
  EXPECT_THAT(runs_of(with(300, {run(60, 150)}), 64),
              ElementsAre(run(60, 64), run(124, 64), run(188, 22)));
}

TEST(DirtyBitmap, ASearchBeginsInTheMiddleOfARun) {
  EXPECT_EQ(with(300, {run(60, 150)}).next_run(PageIndex{100}, 1'000), run(100, 110));
}

TEST(DirtyBitmap, ASearchWithAnEndFindsNothingBehindIt) {
  const DirtyBitmap bitmap = with(300, {run(60, 150)});
  EXPECT_EQ(bitmap.next_run(PageIndex{0}, PageIndex{60}, 1'000), std::nullopt);
  EXPECT_EQ(bitmap.next_run(PageIndex{0}, PageIndex{61}, 1'000), run(60, 1));
  EXPECT_EQ(bitmap.next_run(PageIndex{64}, PageIndex{128}, 1'000), run(64, 64));
  EXPECT_EQ(bitmap.next_run(PageIndex{100}, PageIndex{100}, 1'000), std::nullopt);
  EXPECT_EQ(bitmap.next_run(PageIndex{200}, PageIndex{300}, 1'000), run(200, 10));
}

TEST(DirtyBitmap, RemovesWhatIsSetInAnother) {
  DirtyBitmap bitmap = with(300, {run(0, 70), run(128, 10)});
  bitmap.remove(with(300, {run(60, 70), run(299, 1)}));
  EXPECT_THAT(runs_of(bitmap), ElementsAre(run(0, 60), run(130, 8)));
  EXPECT_EQ(bitmap.count(), 68U);
}

TEST(DirtyBitmap, SetsWhereABitmapOfSomebodyElseIsSetAtAnyOffset) {
  const std::vector<std::uint64_t> words = {0x8000000000000001U, 0x3U};
  for (const std::uint64_t first : {0U, 1U, 63U, 64U, 100U}) {
    DirtyBitmap bitmap(300);
    bitmap.set_where(run(first, 66), words);
    EXPECT_THAT(runs_of(bitmap), ElementsAre(run(first, 1), run(first + 63, 3)));
    EXPECT_EQ(bitmap.count(), 4U);
  }
}

TEST(DirtyBitmap, IgnoresForeignBitsBehindTheRun) {
  const std::vector<std::uint64_t> words = {~std::uint64_t{0}, ~std::uint64_t{0}};
  DirtyBitmap bitmap(67);
  bitmap.set_where(run(1, 66), words);
  EXPECT_THAT(runs_of(bitmap), ElementsAre(run(1, 66)));
  DirtyBitmap inside(200);
  inside.set_where(run(60, 5), words);
  EXPECT_THAT(runs_of(inside), ElementsAre(run(60, 5)));
}

TEST(DirtyBitmap, TakeMovesEverythingOut) {
  DirtyBitmap bitmap = with(200, {run(3, 1), run(60, 80)});
  const DirtyBitmap taken = bitmap.take();
  EXPECT_TRUE(bitmap.empty());
  EXPECT_EQ(bitmap.pages(), 200U);
  EXPECT_THAT(runs_of(bitmap), IsEmpty());
  EXPECT_THAT(runs_of(taken), ElementsAre(run(3, 1), run(60, 80)));
  EXPECT_EQ(taken.count(), 81U);
}

TEST(DirtyBitmap, WhatWasNotWrittenGoesBackToWhatWasDirtiedMeanwhile) {
  DirtyBitmap dirty = with(200, {run(0, 100)});
  DirtyBitmap work = dirty.take();
  work.clear(run(0, 70));  // written, then the store failed
  dirty.set(run(10, 5));   // meanwhile
  dirty.set(run(80, 1));
  dirty.merge_back(work);
  EXPECT_THAT(runs_of(dirty), ElementsAre(run(10, 5), run(70, 30)));
  EXPECT_EQ(dirty.count(), 35U);
}

TEST(DirtyBitmap, AbortsOutside) {
  DirtyBitmap bitmap(10);
  const std::vector<std::uint64_t> one_word = {0};
  EXPECT_DEATH(bitmap.set(run(9, 2)), "broken invariant");
  EXPECT_DEATH(bitmap.clear(run(10, 1)), "broken invariant");
  EXPECT_DEATH(bitmap.set(run(~std::uint64_t{0}, 2)), "broken invariant");
  EXPECT_DEATH(static_cast<void>(bitmap.is_set(PageIndex{10})), "broken invariant");
  EXPECT_DEATH(bitmap.merge_back(DirtyBitmap(11)), "broken invariant");
  EXPECT_DEATH(DirtyBitmap(65).set_where(run(0, 65), one_word), "broken invariant");
}

// Against the plainest thing that does the same.
TEST(DirtyBitmap, DoesWhatAVectorOfBoolDoes) {
  constexpr std::uint64_t kPages = 517;
  std::mt19937_64 random(1);
  DirtyBitmap bitmap(kPages);
  std::vector<bool> plain(kPages);
  for (int step = 0; step < 2'000; ++step) {
    const std::uint64_t first = random() % kPages;
    const std::uint64_t pages = random() % std::min<std::uint64_t>(kPages - first, 140) + 1;
    const bool sets = random() % 2 == 0;
    sets ? bitmap.set(run(first, pages)) : bitmap.clear(run(first, pages));
    for (std::uint64_t page = first; page < first + pages; ++page) plain[page] = sets;
    const std::uint64_t from = random() % kPages;
    std::uint64_t begin = from;
    while (begin < kPages && !plain[begin]) ++begin;
    std::uint64_t end = begin;
    while (end < kPages && plain[end] && end - begin < 100) ++end;
    const auto found = bitmap.next_run(PageIndex{from}, 100);
    ASSERT_EQ(found.has_value(), begin < kPages);
    if (found) {
      ASSERT_EQ(*found, run(begin, end - begin));
    }
    ASSERT_EQ(bitmap.count(),
              static_cast<std::uint64_t>(std::count(plain.begin(), plain.end(), true)));
  }
}

TEST(ReportedPages, MarksAreTakenOnce) {
  ReportedPages reported(130);
  reported.mark(run(63, 2));
  reported.mark(run(129, 1));
  DirtyBitmap dirty(130);
  reported.take_into(dirty);
  EXPECT_THAT(runs_of(dirty), ElementsAre(run(63, 2), run(129, 1)));
  DirtyBitmap again(130);
  reported.take_into(again);
  EXPECT_TRUE(again.empty());
}

TEST(ReportedPages, AllAreAllAndNoMore) {
  ReportedPages reported(70);
  reported.mark_all();
  DirtyBitmap dirty(70);
  reported.take_into(dirty);
  EXPECT_EQ(dirty.count(), 70U);
}

TEST(ReportedPages, MarksOfOneRunAreTakenAndTheOthersStay) {
  ReportedPages reported(200);
  reported.mark_all();
  DirtyBitmap dirty(200);
  reported.take_into(dirty, run(10, 100));
  EXPECT_THAT(runs_of(dirty), ElementsAre(run(10, 100)));
  DirtyBitmap rest(200);
  reported.take_into(rest);
  EXPECT_THAT(runs_of(rest), ElementsAre(run(0, 10), run(110, 90)));
}

TEST(ReportedPages, AbortsOutside) {
  ReportedPages reported(10);
  EXPECT_DEATH(reported.mark(run(10, 1)), "broken invariant");
}

// A page that is marked after a write is either in this collection, which then sees the write, or in a later one.
TEST(ReportedPages, NoMarkOfAnotherThreadIsLost) {
  constexpr std::uint64_t kPages = 64;
  constexpr std::uint64_t kWrites = 200'000;
  std::vector<std::atomic<std::uint64_t>> content(kPages);
  std::vector<std::uint64_t> copy(kPages);
  ReportedPages reported(kPages);
  std::atomic<bool> done = false;
  std::thread writer([&] {
    for (std::uint64_t i = 1; i <= kWrites; ++i) {
      content[i % kPages].store(i, std::memory_order_relaxed);
      reported.mark(run(i % kPages, 1));
    }
    done = true;
  });
  bool last = false;
  do {
    last = done;
    DirtyBitmap dirty(kPages);
    reported.take_into(dirty);
    for (std::uint64_t page = 0; page < kPages; ++page) {
      if (dirty.is_set(PageIndex{page})) copy[page] = content[page].load(std::memory_order_relaxed);
    }
  } while (!last);
  writer.join();
  for (std::uint64_t page = 0; page < kPages; ++page) EXPECT_EQ(copy[page], content[page]) << page;
}

}  // namespace
}  // namespace pageferry
