// MemoryLayout numbers the pages of all blocks in one row and refuses what does not fit its bounds.
#include "pager/memory_layout.h"

#include <gtest/gtest.h>

namespace pageferry {
namespace {

RamBlock block(std::string name, std::uint64_t pages) {
  return RamBlock{.name = std::move(name), .length_bytes = bytes_of_pages(pages)};
}

TEST(MemoryLayout, NumbersBlocksOneAfterAnother) {
  auto layout = MemoryLayout::make({block("pc.ram", 10), block("pc.bios", 3)});
  ASSERT_TRUE(layout);
  EXPECT_EQ(layout->pages(), 13U);
  EXPECT_EQ(layout->blocks()[1].first_page, PageIndex{10});
}

TEST(MemoryLayout, FindsTheBlockOfItsFirstAndLastPage) {
  auto layout = MemoryLayout::make({block("a", 10), block("b", 3)});
  ASSERT_TRUE(layout);
  EXPECT_EQ(layout->block_of(PageIndex{9}), 0U);
  EXPECT_EQ(layout->block_of(PageIndex{10}), 1U);
  EXPECT_EQ(layout->block_of(PageIndex{12}), 1U);
}

TEST(MemoryLayout, RefusesABlockNamedTwice) {
  auto layout = MemoryLayout::make({block("a", 1), block("a", 1)});
  ASSERT_FALSE(layout);
  EXPECT_EQ(layout.error().code, Errc::invalid);
}

TEST(MemoryLayout, RefusesALengthThatIsNoWholePage) {
  EXPECT_FALSE(MemoryLayout::make({RamBlock{.name = "a", .length_bytes = 4097}}));
}

TEST(MemoryLayout, RefusesASumBeyondTheLimit) {
  RamBlock half{.name = "a", .length_bytes = kMemoryBytesMax};
  RamBlock other{.name = "b", .length_bytes = kMemoryBytesMax};
  EXPECT_FALSE(MemoryLayout::make({half, other}));
}

TEST(MemoryLayout, RefusesABackingPageThatDoesNotDivideTheLength) {
  EXPECT_FALSE(MemoryLayout::make(
      {RamBlock{.name = "a", .length_bytes = 3 << 20, .backing_page_bytes = 2 << 20}}));
}

}  // namespace
}  // namespace pageferry
