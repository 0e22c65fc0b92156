// RegionSupply: each page of a region is that page of the source, whatever order the regions are in, and a page that was removed is none.
#include "pager/region_supply.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fakes/memory_page_supply.h"
#include "fakes/page_content.h"
#include "fakes/page_file_fixture.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::ElementsAre;

// The source: 100 pages. The guest: region 0 is pages 60..99, region 1 is 10..29, the rest is not shown.
struct Renumbered {
  explicit Renumbered(PageSupply& source)
      : supply(source, layout, {PageIndex{60}, PageIndex{10}}, removed) {}
  MemoryLayout layout = layout_of({{"region 0", 40}, {"region 1", 20}});
  RemovedPages removed{60};
  RegionSupply supply;
};

class RegionSupplyTest : public testing::Test {
 protected:
  RegionSupplyTest() : source_(layout_of({{"memory", 100}})) {
    for (std::uint64_t page = 0; page < 100; ++page) {
      source_.set_page(PageIndex{page}, content_of(page, 1), static_cast<std::uint32_t>(page));
    }
    source_.set_zero(PageIndex{12}, 0);
    source_.set_recent({PageIndex{0}, PageIndex{11}, PageIndex{29}, PageIndex{30}, PageIndex{61}});
  }
  MemoryPageSupply source_;
};

TEST_F(RegionSupplyTest, EachPageIsThatOfItsRegion) {
  Renumbered guest(source_);
  for (std::uint64_t page = 0; page < 60; ++page) {
    const std::uint64_t source = page < 40 ? 60 + page : 10 + (page - 40);
    if (source == 12) continue;
    ASSERT_EQ(read_page(guest.supply, page), contents_of(source, 1)) << page;
    ASSERT_EQ(guest.supply.version(PageIndex{page}), source);
  }
}

TEST_F(RegionSupplyTest, ZeroPagesAreThose) {
  Renumbered guest(source_);
  for (std::uint64_t page = 0; page < 60; ++page) {
    EXPECT_EQ(guest.supply.is_zero(PageIndex{page}), page == 42) << page;
  }
}

TEST_F(RegionSupplyTest, ARunEndsWithItsRegion) {
  Renumbered guest(source_);
  EXPECT_EQ(guest.supply.contiguous_run(PageIndex{38}, 64), (PageRun{PageIndex{38}, 2}));
  EXPECT_EQ(guest.supply.contiguous_run(PageIndex{40}, 64), (PageRun{PageIndex{40}, 2}));
  EXPECT_EQ(guest.supply.contiguous_run(PageIndex{43}, 64), (PageRun{PageIndex{43}, 17}));
}

TEST_F(RegionSupplyTest, ReadsAreReportedAsTheyWereAskedFor) {
  Renumbered guest(source_);
  const auto first = guest.supply.start_read({PageIndex{43}, 5}, ReadClass::demand);
  const auto second = guest.supply.start_read({PageIndex{0}, 3}, ReadClass::prefetch);
  ASSERT_TRUE(first && second);
  const auto done = guest.supply.poll();
  ASSERT_EQ(done.size(), 2U);
  EXPECT_EQ(done[0].ticket, *first);
  EXPECT_EQ(done[0].run, (PageRun{PageIndex{43}, 5}));
  EXPECT_EQ(done[1].run, (PageRun{PageIndex{0}, 3}));
  EXPECT_EQ(source_.started()[0].run, (PageRun{PageIndex{13}, 5}));
  guest.supply.release(*first);
  guest.supply.release(*second);
  EXPECT_EQ(source_.unreleased(), 0U);
}

TEST_F(RegionSupplyTest, RecentPagesAreThoseThatAreShownAscending) {
  Renumbered guest(source_);
  EXPECT_THAT(guest.supply.recent_pages(), ElementsAre(PageIndex{1}, PageIndex{41}, PageIndex{59}));
}

TEST_F(RegionSupplyTest, ARemovedPageIsZero) {
  Renumbered guest(source_);
  guest.removed.add({PageIndex{5}, 2});
  EXPECT_FALSE(guest.supply.is_zero(PageIndex{4}));
  EXPECT_TRUE(guest.supply.is_zero(PageIndex{5}));
  EXPECT_TRUE(guest.supply.is_zero(PageIndex{6}));
  EXPECT_FALSE(guest.supply.is_zero(PageIndex{7}));
}

// A region need not respect the RAM blocks of a page file.
TEST(RegionSupplyOverPageFile, ARegionMayCrossBlocksOfThePageFile) {
  MemoryDisk disk;
  const auto writer = writer_on(disk, layout_of({{"pc.ram", 24}, {"high", 76}}));
  ASSERT_NE(writer, nullptr);
  writer->begin_pass(1);
  for (std::uint64_t page = 0; page < 100; ++page) ASSERT_TRUE(put(*writer, page, 1));
  ASSERT_TRUE(writer->finish_and_commit());
  const auto reader = open_reader(disk);
  ASSERT_TRUE(reader) << reader.error().message;
  Renumbered guest(**reader);
  for (std::uint64_t page = 0; page < 60; ++page) {
    const std::uint64_t source = page < 40 ? 60 + page : 10 + (page - 40);
    ASSERT_EQ(read_page(guest.supply, page), contents_of(source, 1)) << page;
  }
}

TEST(RemovedPagesTest, RunsThatAreAlikeAreFoundAndEachPageCountsOnce) {
  RemovedPages removed(200);
  EXPECT_EQ(removed.alike({PageIndex{0}, 200}), 200U);
  removed.add({PageIndex{60}, 10});
  removed.add({PageIndex{65}, 10});
  EXPECT_EQ(removed.count(), 15U);
  EXPECT_EQ(removed.alike({PageIndex{0}, 200}), 60U);
  EXPECT_EQ(removed.alike({PageIndex{60}, 140}), 15U);
  EXPECT_EQ(removed.alike({PageIndex{62}, 3}), 3U);
  EXPECT_FALSE(removed.has(PageIndex{59}));
  EXPECT_TRUE(removed.has(PageIndex{74}));
  EXPECT_FALSE(removed.has(PageIndex{75}));
}

}  // namespace
}  // namespace pageferry
