// A copied page: every byte of it, and none of its neighbours.
#include "pager/page_copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "transport/io_buffer.h"

namespace pageferry {
namespace {

constexpr std::byte kUntouched{0xee};

class PageCopyTest : public testing::TestWithParam<std::size_t> {};

TEST_P(PageCopyTest, CopiesAllBytesFromAnyAlignmentAndNoOthers) {
  const std::size_t misalignment = GetParam();
  std::vector<std::byte> source(kPageSizeBytes + misalignment);
  for (std::size_t i = 0; i < source.size(); ++i)
    source[i] = static_cast<std::byte>(i * 7 + i / 251);
  auto memory = AlignedMemory::map(3 * kPageSizeBytes);
  ASSERT_TRUE(memory.has_value());
  const std::span<std::byte> all(memory->data(), 3 * kPageSizeBytes);
  std::fill(all.begin(), all.end(), kUntouched);

  const PageBytes page(source.data() + misalignment, kPageSizeBytes);
  copy_page_past_caches(all.subspan<kPageSizeBytes, kPageSizeBytes>(), page);

  EXPECT_TRUE(std::equal(page.begin(), page.end(), all.begin() + kPageSizeBytes));
  const auto untouched = [](std::byte b) { return b == kUntouched; };
  EXPECT_TRUE(std::all_of(all.begin(), all.begin() + kPageSizeBytes, untouched));
  EXPECT_TRUE(std::all_of(all.end() - kPageSizeBytes, all.end(), untouched));
}

INSTANTIATE_TEST_SUITE_P(Sources, PageCopyTest, testing::Values(0U, 1U, 8U, 15U, 63U));

}  // namespace
}  // namespace pageferry
