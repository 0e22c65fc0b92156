// A page is zero when every byte is: one bit anywhere makes it another.
#include <gtest/gtest.h>

#include <array>

#include "pager/page.h"

namespace pageferry {
namespace {

struct alignas(kPageSizeBytes) Page {
  std::array<std::byte, kPageSizeBytes> bytes{};
};

TEST(ZeroPageTest, APageOfZerosIsZero) {
  const Page page;
  EXPECT_TRUE(is_zero_page(page.bytes));
}

TEST(ZeroPageTest, OneBitInAnyByteIsSeen) {
  Page page;
  for (std::size_t at = 0; at < kPageSizeBytes; ++at) {
    page.bytes[at] = static_cast<std::byte>(1U << at % 8);
    EXPECT_FALSE(is_zero_page(page.bytes)) << at;
    page.bytes[at] = std::byte{0};
  }
}

TEST(ZeroPageTest, WorksOnMemoryThatIsNotAligned) {
  std::array<Page, 2> pages;
  std::byte* const odd = pages[0].bytes.data() + 1;
  EXPECT_TRUE(is_zero_page(PageBytes(odd, kPageSizeBytes)));
  odd[kPageSizeBytes - 1] = std::byte{0x80};
  EXPECT_FALSE(is_zero_page(PageBytes(odd, kPageSizeBytes)));
  odd[kPageSizeBytes - 1] = std::byte{0};
  odd[kPageSizeBytes] = std::byte{1};
  EXPECT_TRUE(is_zero_page(PageBytes(odd, kPageSizeBytes)));
}

}  // namespace
}  // namespace pageferry
