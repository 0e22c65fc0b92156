// What the demo guest is made of: the pattern in its pages, the choice of pages, its pace, its place in memory. The oracle of other tests,
// so each thing that it must tell apart is shown to it once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "tools/demo_vmm/guest/page_choice.h"
#include "tools/demo_vmm/guest_plan.h"
#include "tools/demo_vmm/pacer.h"

namespace pageferry::demo {
namespace {

using testing::HasSubstr;

constexpr std::uint64_t kSeed = 7;
constexpr std::uint64_t kAddress = 0x40'0000;
using Page = std::array<std::uint64_t, kGuestPageWords>;

Page page_of(std::uint64_t address, std::uint32_t version) {
  Page page{};
  write_pattern(page.data(), kSeed, address, version);
  return page;
}
BadKind judged(const Page& page, std::uint32_t version) {
  return judge(page.data(), kSeed, kAddress, version);
}

// --- the pattern ---

TEST(DemoGuestPage, AWrittenPageIsGood) {
  EXPECT_EQ(judged(page_of(kAddress, 3), 3), BadKind::none);
}
TEST(DemoGuestPage, EachFlippedBitIsSeen) {
  for (std::size_t word = 0; word < kGuestPageWords; ++word) {
    Page page = page_of(kAddress, 3);
    page[word] ^= std::uint64_t{1} << (word % 64);
    EXPECT_NE(judged(page, 3), BadKind::none) << word;
  }
}
TEST(DemoGuestPage, AnOldPageIsStale) {
  EXPECT_EQ(judged(page_of(kAddress, 2), 3), BadKind::stale);
}
TEST(DemoGuestPage, AZeroPageInPlaceOfAWrittenOneIsStale) {
  EXPECT_EQ(judged(Page{}, 3), BadKind::stale);
}
TEST(DemoGuestPage, APageOfAnotherAddressIsWrong) {
  EXPECT_EQ(judged(page_of(kAddress + kGuestPageBytes, 3), 3), BadKind::content);
}
TEST(DemoGuestPage, HalfAnOldPageIsWrong) {
  Page page = page_of(kAddress, 3);
  const Page old = page_of(kAddress, 2);
  std::copy(old.begin() + 256, old.end(), page.begin() + 256);
  EXPECT_EQ(judged(page, 3), BadKind::content);
}
TEST(DemoGuestPage, VersionZeroIsZeros) {
  EXPECT_EQ(judged(Page{}, 0), BadKind::none);
  EXPECT_EQ(judged(page_of(kAddress, 1), 0), BadKind::not_zero);
}

// --- the choice ---

std::vector<std::uint64_t> choices(Distribution distribution, std::uint64_t pages,
                                   std::size_t count, ChoiceState& state) {
  std::vector<std::uint64_t> chosen;
  for (std::size_t i = 0; i < count; ++i) {
    chosen.push_back(choose(state, distribution, pages, strewing_multiplier(pages)));
  }
  return chosen;
}

class DemoGuestChoice : public testing::TestWithParam<Distribution> {};
INSTANTIATE_TEST_SUITE_P(All, DemoGuestChoice,
                         testing::Values(Distribution::uniform, Distribution::zipf,
                                         Distribution::sequential));

TEST_P(DemoGuestChoice, IsAFunctionOfItsState) {
  ChoiceState state{.random = kSeed};
  choices(GetParam(), 1'000, 500, state);
  ChoiceState copy = state;
  EXPECT_EQ(choices(GetParam(), 1'000, 500, state), choices(GetParam(), 1'000, 500, copy));
}
TEST_P(DemoGuestChoice, StaysBelowTheCountAndReachesAll) {
  for (const std::uint64_t pages : {1U, 2U, 3U, 7U, 64U, 100U}) {
    ChoiceState state{.random = kSeed};
    std::vector<int> seen(pages);
    for (const std::uint64_t page : choices(GetParam(), pages, 20'000, state)) {
      ASSERT_LT(page, pages);
      ++seen[page];
    }
    EXPECT_THAT(seen, testing::Each(testing::Gt(0))) << pages;
  }
}
TEST(DemoGuestChoiceZipf, HalfOfTheChoicesAreOnAFewPages) {
  constexpr std::uint64_t kPages = 10'000;
  ChoiceState state{.random = kSeed};
  std::vector<int> seen(kPages);
  for (const std::uint64_t page : choices(Distribution::zipf, kPages, 100'000, state)) ++seen[page];
  std::sort(seen.rbegin(), seen.rend());
  const int first_hundred = std::accumulate(seen.begin(), seen.begin() + 100, 0);
  EXPECT_GT(first_hundred, 40'000);
  EXPECT_LT(first_hundred, 60'000);
}
TEST(DemoGuestChoiceSequential, GoesRound) {
  ChoiceState state;
  EXPECT_EQ(choices(Distribution::sequential, 3, 7, state),
            (std::vector<std::uint64_t>{0, 1, 2, 0, 1, 2, 0}));
}

// --- the pace ---

TEST(DemoVmmRateShare, GivesEachItsShareOverTime) {
  RateShare share({.write_pages = 1'000, .read_pages = 7}, 2);
  std::uint64_t writes = 0;
  std::uint64_t reads = 0;
  for (Milliseconds now{0}; now <= Seconds(10); now += Milliseconds(1)) {
    const Budget budget = share.take(now);
    writes += budget.writes;
    reads += budget.reads;
  }
  EXPECT_NEAR(static_cast<double>(writes), 5'000, 1);
  EXPECT_NEAR(static_cast<double>(reads), 35, 1);
}
TEST(DemoVmmRateShare, DoesNotCatchUpAfterAPause) {
  RateShare share({.write_pages = 1'000}, 1);
  share.take(Seconds(0));
  EXPECT_EQ(share.take(Seconds(100)).writes, 20U);
  EXPECT_EQ(share.take(Seconds(100) + Milliseconds(1)).writes, 1U);
}
TEST(DemoVmmRateShare, NeverGivesMoreThanABudgetHolds) {
  RateShare share({~0ULL >> 1, ~0ULL >> 1, ~0ULL >> 1, ~0ULL >> 1}, 1);
  share.take(Seconds(0));
  const Budget budget = share.take(Seconds(1));
  EXPECT_EQ(Budget::of(budget.packed()).writes, Budget::kPagesMax);
  EXPECT_EQ(Budget::of(budget.packed()).reads, Budget::kPagesMax);
  EXPECT_EQ(Budget::of(budget.packed()).disk, Budget::kDiskMax);
  EXPECT_EQ(Budget::of(budget.packed()).give_back, Budget::kGiveBackMax);
}

// --- the plan ---

TEST(DemoGuestPlan, SlotsHoldAllOfTheMemoryAndDoNotTouch) {
  const auto plan = plan_guest({.memory_bytes = std::uint64_t{64} << 20, .ram_slots = 3});
  ASSERT_TRUE(plan);
  std::uint64_t bytes = 0;
  std::uint64_t end = 0;
  for (const PlannedSlot& slot : plan->slots) {
    EXPECT_EQ(slot.size_bytes % kGuestHugeBytes, 0U);
    EXPECT_EQ(slot.guest_address % kGuestHugeBytes, 0U);
    EXPECT_GE(slot.guest_address, end);
    end = slot.guest_address + slot.size_bytes;
    bytes += slot.size_bytes;
  }
  EXPECT_EQ(bytes, std::uint64_t{64} << 20);
  EXPECT_EQ(plan->slots.size(), 4U);
}
TEST(DemoGuestPlan, NumbersOutOfBoundsAreRefusedByName) {
  const auto message = [](const GuestNumbers& numbers) {
    const auto plan = plan_guest(numbers);
    return plan ? std::string() : plan.error().message;
  };
  EXPECT_THAT(message({.vcpus = 0}), HasSubstr("vCPUs is 0"));
  EXPECT_THAT(message({.vcpus = 17}), HasSubstr("vCPUs is 17"));
  EXPECT_THAT(message({.ram_slots = 9}), HasSubstr("slots is 9"));
  EXPECT_THAT(message({.memory_bytes = 3 << 20}), HasSubstr("memory in bytes"));
  EXPECT_THAT(message({.memory_bytes = 4 << 20}), HasSubstr("at least"));
  EXPECT_THAT(message({.memory_bytes = 1ULL << 40}), HasSubstr("64 GiB"));
  EXPECT_THAT(message({.disk_bytes = 1}), HasSubstr("disk"));
  EXPECT_THAT(message({.give_back_bytes = 8'192}), HasSubstr("balloon"));
}

}  // namespace
}  // namespace pageferry::demo
