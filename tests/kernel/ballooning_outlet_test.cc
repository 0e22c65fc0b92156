// BallooningOutlet on the real userfaultfd: memory that its owner gives back while pages come.
#include "pager/ballooning_outlet.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <list>
#include <optional>
#include <vector>

#include "fakes/huge_pages.h"
#include "fakes/memory_page_supply.h"
#include "fakes/page_content.h"
#include "fakes/userfault_memory.h"
#include "pager/page_in.h"
#include "pager/region_supply.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr std::uint64_t kBalloonPages = 64;

MemoryLayout one_region(std::uint64_t bytes, std::uint64_t page_size_bytes) {
  auto layout = MemoryLayout::make(
      {RamBlock{.name = "region 0", .length_bytes = bytes, .backing_page_bytes = page_size_bytes}});
  PF_CHECK(layout.has_value());
  return *layout;
}

struct BallooningGuest {
  explicit BallooningGuest(Backing backing = Backing::anonymous,
                           std::uint64_t bytes = bytes_of_pages(kBalloonPages),
                           std::uint64_t page_size_bytes = kPageSizeBytes)
      : memory(bytes, backing), layout(one_region(bytes, page_size_bytes)) {
    register_missing(userfault, memory);
    const auto opened = placing.open(duplicate(userfault), tables_of());
    EXPECT_TRUE(opened) << opened.error().message;
  }
  std::uint64_t put(std::uint64_t first, std::uint64_t pages,
                    PageChannel channel = PageChannel::urgent) {
    const auto taken =
        outlet.put_pages(channel, {PageIndex{first}, pages}, contents_of(first, pages));
    EXPECT_TRUE(taken) << taken.error().message;
    return taken ? *taken : 0;
  }
  std::vector<PageRun> faults() {
    std::vector<PageRun> faults;
    const auto read = outlet.read_faults(faults);
    EXPECT_TRUE(read) << read.error().message;
    return faults;
  }
  // Removes pages, and hears of it.
  void remove(std::uint64_t first, std::uint64_t pages) {
    Remover remover(memory, first, pages);
    EXPECT_TRUE(fault_comes(placing.fd()));
    EXPECT_THAT(faults(), IsEmpty());
    remover.wait();
  }
  bool is_there(std::uint64_t page) {
    const auto there = tables.has(memory.address() + bytes_of_pages(page));
    EXPECT_TRUE(there);
    return there && *there;
  }
  // Of pages that are there.
  bool holds(std::uint64_t page, const std::vector<std::byte>& expected) const {
    return std::memcmp(memory.page(page), expected.data(), expected.size()) == 0;
  }
  // What a thread finds in a page that it has to wait for, and that is no page for PageIn to bring.
  void expect_zeros_at(std::uint64_t page) {
    Toucher toucher(memory.page(page));
    ASSERT_TRUE(fault_comes(placing.fd()));
    EXPECT_THAT(faults(), IsEmpty());
    EXPECT_EQ(toucher.wait(), std::byte{0});
    EXPECT_TRUE(holds(page, std::vector<std::byte>(kPageSizeBytes)));
  }

  UserfaultMemory memory;
  MemoryLayout layout;
  PageTables tables = tables_of();
  std::list<Toucher> touchers;  // wait, in the worst case, until what is below is closed
  UniqueFd userfault = open_ballooning_userfault();
  UserfaultOutlet placing{layout, {memory.address()}, UserfaultOutlet::WhenChanging::give_back};
  RemovedPages removed{layout.pages()};
  BallooningOutlet outlet{placing, removed};
};

TEST(BallooningOutletTest, WithoutABalloonPagesAndFaultsPassThrough) {
  BallooningGuest guest;
  Toucher& toucher = guest.touchers.emplace_back(guest.memory.page(5));
  ASSERT_TRUE(fault_comes(guest.placing.fd()));
  EXPECT_THAT(guest.faults(), ElementsAre(PageRun{PageIndex{5}, 1}));
  EXPECT_EQ(guest.put(0, kBalloonPages), kBalloonPages);
  EXPECT_EQ(toucher.wait(), contents_of(5, 1)[0]);
  EXPECT_TRUE(guest.holds(0, contents_of(0, kBalloonPages)));
}

TEST(BallooningOutletTest, APageThatWasRemovedIsZeroWhenItIsTouched) {
  BallooningGuest guest;
  guest.put(0, 8);
  guest.remove(3, 2);
  guest.expect_zeros_at(3);
  guest.expect_zeros_at(4);
  EXPECT_TRUE(guest.holds(2, contents_of(2, 1)));
  EXPECT_TRUE(guest.holds(5, contents_of(5, 1)));
  EXPECT_EQ(guest.removed.count(), 2U);
  EXPECT_EQ(guest.outlet.zeros_placed(), 2U);
}

TEST(BallooningOutletTest, WhatTheGuestWritesToARemovedPageStays) {
  BallooningGuest guest;
  guest.remove(3, 1);
  guest.expect_zeros_at(3);
  std::memset(guest.memory.page(3), 0x5a, kPageSizeBytes);
  EXPECT_EQ(guest.put(0, 8), 8U);
  EXPECT_TRUE(guest.holds(3, std::vector<std::byte>(kPageSizeBytes, std::byte{0x5a})));
}

TEST(BallooningOutletTest, RemovedTwiceItIsZeroTwice) {
  BallooningGuest guest;
  guest.put(0, 8);
  for (int i = 0; i < 2; ++i) {
    guest.remove(3, 1);
    guest.expect_zeros_at(3);
    std::memset(guest.memory.page(3), 0x5a, kPageSizeBytes);
  }
  EXPECT_EQ(guest.removed.count(), 1U);
}

TEST(BallooningOutletTest, PagesThatComeAfterTheirRemovalAreDropped) {
  BallooningGuest guest;
  guest.remove(4, 4);
  EXPECT_EQ(guest.put(0, 16), 16U);
  for (std::uint64_t page = 0; page < 16; ++page) {
    EXPECT_EQ(guest.is_there(page), page < 4 || page >= 8) << page;
  }
  EXPECT_TRUE(guest.holds(0, contents_of(0, 4)));
  EXPECT_TRUE(guest.holds(8, contents_of(8, 8)));
  guest.expect_zeros_at(7);
}

TEST(BallooningOutletTest, ZeroPagesOfTheSourceDoNotFillABalloon) {
  BallooningGuest guest;
  guest.remove(4, 4);
  EXPECT_EQ(guest.outlet.put_zeros(PageChannel::background, {kFirstPage, 8}).value(), 8U);
  EXPECT_TRUE(guest.is_there(3));
  EXPECT_FALSE(guest.is_there(4));
}

TEST(BallooningOutletTest, WhileARemovalIsUnreadNothingIsPlacedAndThenItIsKnown) {
  BallooningGuest guest;
  Remover remover(guest.memory, 2, 2);
  ASSERT_TRUE(fault_comes(guest.placing.fd()));
  EXPECT_EQ(guest.put(0, 8), 0U);
  EXPECT_TRUE(guest.outlet.held());
  EXPECT_TRUE(guest.removed.has(PageIndex{2})) << "what stood in the way was read";
  remover.wait();
  EXPECT_EQ(guest.put(0, 8), 8U);
  EXPECT_FALSE(guest.is_there(2));
  EXPECT_TRUE(guest.is_there(4));
}

TEST(BallooningOutletTest, WhoWaitedForAPageThatIsRemovedMeanwhileGetsZeros) {
  BallooningGuest guest;
  Toucher& toucher = guest.touchers.emplace_back(guest.memory.page(9));
  ASSERT_TRUE(fault_comes(guest.placing.fd()));
  EXPECT_THAT(guest.faults(), ElementsAre(PageRun{PageIndex{9}, 1}));
  guest.remove(8, 4);
  // Woken, it asks again.
  ASSERT_TRUE(fault_comes(guest.placing.fd()));
  EXPECT_THAT(guest.faults(), IsEmpty());
  EXPECT_EQ(toucher.wait(), std::byte{0});
  EXPECT_EQ(guest.put(9, 1), 1U);
  EXPECT_TRUE(guest.holds(9, std::vector<std::byte>(kPageSizeBytes)));
}

TEST(BallooningOutletTest, AFaultThatIsHeardTogetherWithARemovalIsNotLost) {
  BallooningGuest guest;
  Toucher& toucher = guest.touchers.emplace_back(guest.memory.page(9));
  ASSERT_TRUE(fault_comes(guest.placing.fd()));
  Remover remover(guest.memory, 20, 1);
  // Both are heard by a placing that is refused, once the removal is there.
  while (guest.removed.count() == 0) guest.put(0, 1);
  remover.wait();
  EXPECT_THAT(guest.faults(), ElementsAre(PageRun{PageIndex{9}, 1}));
  guest.put(9, 1);
  EXPECT_EQ(toucher.wait(), contents_of(9, 1)[0]);
}

TEST(BallooningOutletTest, MemoryOutsideTheRegionsMayBeRemovedWithIt) {
  BallooningGuest guest;
  const UserfaultMemory other(bytes_of_pages(4));
  register_missing(guest.userfault, other);
  Remover remover(other, 0, 4);
  ASSERT_TRUE(fault_comes(guest.placing.fd()));
  EXPECT_THAT(guest.faults(), IsEmpty());
  remover.wait();
  EXPECT_EQ(guest.removed.count(), 0U);
}

// --- pages that were on their way when they were removed ---

TEST(BallooningOutletTest, AReadThatWasUnderWayBringsNothingBack) {
  BallooningGuest guest;
  MemoryPageSupply source(layout_of({{"memory", kBalloonPages}}),
                          MemoryPageSupply::Answers::when_told);
  for (std::uint64_t page = 0; page < kBalloonPages; ++page) {
    source.set_page(PageIndex{page}, content_of(page, 1));
  }
  RegionSupply supply(source, guest.layout, {kFirstPage}, guest.removed);
  const MonotonicClock clock;
  PageIn page_in(supply, guest.layout, SentMap(kBalloonPages), guest.outlet, clock,
                 {.order = PrefetchOrder::linear});
  ASSERT_TRUE(page_in.step());
  ASSERT_GT(source.under_way(), 0U) << "prefetch reads";
  guest.remove(0, kBalloonPages / 2);
  while (!page_in.complete()) {
    source.finish_all();
    const auto stepped = page_in.step();
    ASSERT_TRUE(stepped) << stepped.error().message;
  }
  for (std::uint64_t page = 0; page < kBalloonPages; ++page) {
    ASSERT_EQ(guest.is_there(page), page >= kBalloonPages / 2) << page;
  }
  for (std::uint64_t page = 0; page < kBalloonPages / 2; ++page) guest.expect_zeros_at(page);
  EXPECT_TRUE(guest.holds(kBalloonPages / 2, contents_of(kBalloonPages / 2, kBalloonPages / 2)));
}

TEST(BallooningOutletTest, PagesThatWereRemovedAreNotRead) {
  BallooningGuest guest;
  MemoryPageSupply source(layout_of({{"memory", kBalloonPages}}));
  for (std::uint64_t page = 0; page < kBalloonPages; ++page) {
    source.set_page(PageIndex{page}, content_of(page, 1));
  }
  RegionSupply supply(source, guest.layout, {kFirstPage}, guest.removed);
  const MonotonicClock clock;
  PageIn page_in(supply, guest.layout, SentMap(kBalloonPages), guest.outlet, clock,
                 {.order = PrefetchOrder::linear});
  guest.remove(0, kBalloonPages);
  while (!page_in.complete()) ASSERT_TRUE(page_in.step());
  EXPECT_TRUE(source.started().empty());
}

// --- backing pages of 2 MiB; run by root, the test reserves them ---

class BallooningOutletHugetlb : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(pages_.enough()) << "the machine has no 3 free huge pages; as root the test "
                                    "reserves them itself";
    guest_.emplace(Backing::huge_pages, 3 * kHugeBytes, kHugeBytes);
  }
  // In parts, as reads bring them; how many pages were taken.
  std::uint64_t put(std::uint64_t first, std::uint64_t pages) {
    constexpr std::uint64_t kPart = 64;
    std::uint64_t done = 0;
    while (done < pages && guest_->put(first + done, kPart) == kPart) done += kPart;
    return done;
  }
  HugePages pages_{3};
  std::optional<BallooningGuest> guest_;
};

TEST_F(BallooningOutletHugetlb, ABackingPageThatWasRemovedIsZeroWhenItIsTouched) {
  EXPECT_EQ(put(0, 2 * kPagesPerHuge), 2 * kPagesPerHuge);
  guest_->remove(kPagesPerHuge, kPagesPerHuge);
  guest_->expect_zeros_at(kPagesPerHuge + 7);
  EXPECT_TRUE(guest_->holds(kPagesPerHuge, std::vector<std::byte>(kHugeBytes)));
  EXPECT_TRUE(guest_->holds(0, contents_of(0, kPagesPerHuge)));
}

TEST_F(BallooningOutletHugetlb, OneThatIsRemovedWhileItsPartsComeIsDropped) {
  EXPECT_EQ(put(0, kPagesPerHuge / 2), kPagesPerHuge / 2);
  guest_->remove(0, kPagesPerHuge);
  EXPECT_EQ(put(kPagesPerHuge / 2, kPagesPerHuge / 2), kPagesPerHuge / 2);
  EXPECT_FALSE(guest_->is_there(0));
  EXPECT_EQ(put(kPagesPerHuge, kPagesPerHuge), kPagesPerHuge)
      << "the next one is gathered from its beginning";
  EXPECT_TRUE(guest_->holds(kPagesPerHuge, contents_of(kPagesPerHuge, kPagesPerHuge)));
  guest_->expect_zeros_at(0);
}

TEST_F(BallooningOutletHugetlb, ThePartThatWasGivenBackIsTakenAgain) {
  EXPECT_EQ(put(0, kPagesPerHuge - 64), kPagesPerHuge - 64);
  Remover remover(guest_->memory, kPagesPerHuge, kPagesPerHuge);
  ASSERT_TRUE(fault_comes(guest_->placing.fd()));
  EXPECT_EQ(put(kPagesPerHuge - 64, 64), 0U);
  EXPECT_TRUE(guest_->outlet.held());
  remover.wait();
  EXPECT_EQ(put(kPagesPerHuge - 64, 64), 64U);
  EXPECT_TRUE(guest_->holds(0, contents_of(0, kPagesPerHuge)));
}

}  // namespace
}  // namespace pageferry
