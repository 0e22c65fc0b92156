// Pages are found in their mappings, and mappings that cannot be are refused.
#include "pager/guest_memory.h"

#include <gtest/gtest.h>

#include "transport/io_buffer.h"

namespace pageferry {
namespace {

class GuestMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    RamBlock first;
    first.name = "a";
    first.length_bytes = bytes_of_pages(4);
    RamBlock second;
    second.name = "b";
    second.length_bytes = bytes_of_pages(2);
    layout_ = MemoryLayout::make({first, second}).value();
    memory_ = AlignedMemory::map(bytes_of_pages(16)).value();
  }
  const std::byte* page(std::uint64_t number) { return memory_.data() + bytes_of_pages(number); }
  Errc refused(std::vector<const std::byte*> addresses) {
    const auto made = GuestMemory::make(layout_, std::move(addresses));
    EXPECT_FALSE(made);
    return made ? Errc::io : made.error().code;
  }
  MemoryLayout layout_;
  AlignedMemory memory_;
};

TEST_F(GuestMemoryTest, EachBlockHasItsOwnAddress) {
  const auto memory = GuestMemory::make(layout_, {page(8), page(0)});
  ASSERT_TRUE(memory);
  EXPECT_EQ(memory->bytes({PageIndex{1}, 3}).data(), page(9));
  EXPECT_EQ(memory->bytes({PageIndex{1}, 3}).size(), bytes_of_pages(3));
  EXPECT_EQ(memory->bytes({PageIndex{5}, 1}).data(), page(1));
}

TEST_F(GuestMemoryTest, ARunIsCutWhereItsBlockEnds) {
  const auto memory = GuestMemory::make(layout_, {page(8), page(0)});
  EXPECT_EQ(memory->within_block({PageIndex{2}, 4}), (PageRun{PageIndex{2}, 2}));
  EXPECT_EQ(memory->within_block({PageIndex{4}, 2}), (PageRun{PageIndex{4}, 2}));
}

TEST_F(GuestMemoryTest, AddressesThatCannotBeAreRefused) {
  EXPECT_EQ(refused({page(8)}), Errc::invalid);
  EXPECT_EQ(refused({page(8), nullptr}), Errc::invalid);
  EXPECT_EQ(refused({page(8), page(0) + 1}), Errc::invalid);
}

TEST_F(GuestMemoryTest, MappingsThatOverlapAreRefused) {
  EXPECT_EQ(refused({page(8), page(11)}), Errc::invalid);
  EXPECT_EQ(refused({page(8), page(7)}), Errc::invalid);
  EXPECT_TRUE(GuestMemory::make(layout_, {page(8), page(12)}));
  EXPECT_TRUE(GuestMemory::make(layout_, {page(8), page(6)}));
}

}  // namespace
}  // namespace pageferry
