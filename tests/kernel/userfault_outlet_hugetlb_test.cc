// UserfaultOutlet into memory of real 2 MiB pages: their parts come one after the other and go in as a whole. Run by root, it
// reserves the pages.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <list>
#include <vector>

#include "fakes/huge_pages.h"
#include "fakes/page_content.h"
#include "fakes/userfault_memory.h"
#include "pager/userfault_outlet.h"

namespace pageferry {
namespace {

using namespace testing_support;

constexpr std::uint64_t kBackingPages = 3;

MemoryLayout huge_layout() {
  auto layout = MemoryLayout::make({RamBlock{.name = "pc.ram",
                                             .length_bytes = kBackingPages * kHugeBytes,
                                             .backing_page_bytes = kHugeBytes}});
  PF_CHECK(layout.has_value());
  return *layout;
}

struct HugeGuest {
  HugeGuest() {
    register_missing(userfault, memory);
    const auto opened = outlet.open(duplicate(userfault), tables_of());
    EXPECT_TRUE(opened) << opened.error().message;
  }
  // In parts of 64 pages, as reads of a page file bring them.
  void put(PageChannel channel, std::uint64_t first, std::uint64_t pages, std::uint64_t age = 1) {
    constexpr std::uint64_t kPart = 64;
    for (std::uint64_t at = first; at < first + pages; at += kPart) {
      const auto taken =
          outlet.put_pages(channel, {PageIndex{at}, kPart}, contents_of(at, kPart, age));
      ASSERT_TRUE(taken) << taken.error().message;
      EXPECT_EQ(*taken, kPart);
    }
  }
  bool holds(std::uint64_t first, const std::vector<std::byte>& expected) const {
    return std::memcmp(memory.page(first), expected.data(), expected.size()) == 0;
  }
  MemoryLayout layout = huge_layout();
  UserfaultMemory memory{kBackingPages * kHugeBytes, Backing::huge_pages};
  std::list<Toucher> touchers;
  UniqueFd userfault = open_userfault();
  UserfaultOutlet outlet{layout, {memory.address()}};
};

class UserfaultOutletHugetlb : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(pages_.enough()) << "the machine has no " << kBackingPages
                                 << " free huge pages; as root the test reserves them itself";
  }
  HugePages pages_{kBackingPages};
};

TEST_F(UserfaultOutletHugetlb, PartsAreGatheredAndGoInAsAWhole) {
  HugeGuest guest;
  guest.put(PageChannel::background, 0, kPagesPerHuge);
  EXPECT_TRUE(guest.holds(0, contents_of(0, kPagesPerHuge)));
}

TEST_F(UserfaultOutletHugetlb, WhoWaitsGoesOnWhenTheLastPartIsThere) {
  HugeGuest guest;
  Toucher& toucher = guest.touchers.emplace_back(guest.memory.page(kPagesPerHuge + 5));
  ASSERT_TRUE(fault_comes(guest.outlet.fd()));
  std::vector<PageRun> faults;
  ASSERT_TRUE(guest.outlet.read_faults(faults));
  ASSERT_EQ(faults.size(), 1U);
  EXPECT_EQ(raw(faults[0].first) / kPagesPerHuge, 1U);
  guest.put(PageChannel::urgent, kPagesPerHuge, kPagesPerHuge - 64);
  EXPECT_FALSE(toucher.has_seen());
  guest.put(PageChannel::urgent, 2 * kPagesPerHuge - 64, 64);
  EXPECT_EQ(toucher.wait(), contents_of(kPagesPerHuge + 5, 1)[0]);
}

TEST_F(UserfaultOutletHugetlb, ZeroPagesInsideAreZero) {
  HugeGuest guest;
  // What the buffer held before must not shine through.
  guest.put(PageChannel::urgent, 0, kPagesPerHuge);
  ASSERT_TRUE(guest.outlet.put_zeros(PageChannel::urgent, {PageIndex{kPagesPerHuge}, 64}));
  guest.put(PageChannel::urgent, kPagesPerHuge + 64, 64);
  ASSERT_TRUE(guest.outlet.put_zeros(PageChannel::urgent,
                                     {PageIndex{kPagesPerHuge + 128}, kPagesPerHuge - 128}));
  EXPECT_TRUE(guest.holds(kPagesPerHuge, std::vector<std::byte>(bytes_of_pages(64))));
  EXPECT_TRUE(guest.holds(kPagesPerHuge + 64, contents_of(kPagesPerHuge + 64, 64)));
  EXPECT_TRUE(guest.holds(kPagesPerHuge + 128,
                          std::vector<std::byte>(bytes_of_pages(kPagesPerHuge - 128))));
}

TEST_F(UserfaultOutletHugetlb, BothChannelsGatherAtTheSameTime) {
  HugeGuest guest;
  guest.put(PageChannel::background, 0, kPagesPerHuge / 2);
  guest.put(PageChannel::urgent, kPagesPerHuge, kPagesPerHuge);
  guest.put(PageChannel::background, kPagesPerHuge / 2, kPagesPerHuge / 2);
  EXPECT_TRUE(guest.holds(0, contents_of(0, 2 * kPagesPerHuge)));
}

TEST_F(UserfaultOutletHugetlb, ABackingPageThatIsThereKeepsWhatWasWrittenSince) {
  HugeGuest guest;
  guest.put(PageChannel::background, 0, kPagesPerHuge, 1);
  std::memset(guest.memory.page(3), 0x5a, kPageSizeBytes);
  guest.put(PageChannel::background, 0, kPagesPerHuge, 2);
  EXPECT_TRUE(guest.holds(0, contents_of(0, 1, 1)));
  EXPECT_TRUE(guest.holds(3, std::vector<std::byte>(kPageSizeBytes, std::byte{0x5a})));
}

TEST_F(UserfaultOutletHugetlb, NoHugePageLeftIsNoSpace) {
  // Not reserved (QEMU's memory back ends with reserve=off), and taken by somebody else meanwhile.
  void* const at = ::mmap(nullptr, 64 * kHugeBytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, -1, 0);
  ASSERT_NE(at, MAP_FAILED);
  const UniqueFd userfault = open_userfault();
  auto layout = MemoryLayout::make({RamBlock{
      .name = "pc.ram", .length_bytes = 64 * kHugeBytes, .backing_page_bytes = kHugeBytes}});
  ASSERT_TRUE(layout);
  UserfaultOutlet outlet(*layout, {reinterpret_cast<std::uintptr_t>(at)});
  ASSERT_TRUE(outlet.open(duplicate(userfault), tables_of()));
  Result<std::uint64_t> taken = 0;
  for (std::uint64_t page = 0; taken && page < layout->pages(); page += kPagesPerHuge) {
    taken = outlet.put_zeros(PageChannel::urgent, {PageIndex{page}, kPagesPerHuge});
  }
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code, Errc::no_space) << taken.error().message;
  ::munmap(at, 64 * kHugeBytes);
}

}  // namespace
}  // namespace pageferry
