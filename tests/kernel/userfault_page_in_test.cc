// UserfaultPageIn on the real userfaultfd of another process, which plays the VMM and judges what it finds: each kind of memory, a
// pager that
// stops and one that comes after it, removals that the userfaultfd does not tell, and pages that cannot be proved.
#include "pager/userfault_page_in.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "fakes/child_vmm.h"
#include "fakes/huge_pages.h"
#include "fakes/memory_page_supply.h"
#include "fakes/page_content.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::HasSubstr;
using End = UserfaultPageIn::End;

constexpr std::uint64_t kFaultingPages = 2 * kPagesPerHuge;
constexpr PageRun kAll{.first = PageIndex{0}, .pages = kFaultingPages};

MemoryLayout layout_with(std::uint64_t backing_page_bytes) {
  auto layout = MemoryLayout::make({RamBlock{.name = "ram",
                                             .length_bytes = bytes_of_pages(kFaultingPages),
                                             .backing_page_bytes = backing_page_bytes}});
  PF_CHECK(layout.has_value());
  return *layout;
}

// Reports of a VMM in the same process.
class ToldRemovals final : public RemovalReports {
 public:
  void report(PageRun run) {
    const std::lock_guard lock(mutex_);
    new_.push_back(run);
  }
  void take(std::vector<PageRun>& removed) override {
    const std::lock_guard lock(mutex_);
    removed.insert(removed.end(), new_.begin(), new_.end());
    new_.clear();
  }
  void keep(PageRun removed) override { kept.push_back(removed); }
  void remove_again(PageRun placed) override { again.push_back(placed); }

  std::vector<PageRun> kept;
  std::vector<PageRun> again;

 private:
  std::mutex mutex_;
  std::vector<PageRun> new_;
};

// A pager in a thread of this process.
class Pager {
 public:
  using Tell = std::function<void(const UserfaultPageInFigures&)>;
  Pager(UserfaultVmm vmm, const MemoryLayout& layout, PageSupply& supply,
        UserfaultPageInOptions options, RemovalReports* reports = nullptr, Tell tell = {}) {
    options.tell_interval = Milliseconds(10);
    auto made = UserfaultPageIn::make(std::move(vmm), layout, supply, reports, options, clock_);
    EXPECT_TRUE(made) << made.error().message;
    loop = std::move(*made);
    std::promise<Result<End>> ended;
    ended_ = ended.get_future();
    thread_ = std::thread([this, tell = std::move(tell), promise = std::move(ended)]() mutable {
      promise.set_value(loop->serve(stop_, [&tell](const UserfaultPageInFigures& figures) {
        if (tell) tell(figures);
      }));
    });
  }
  ~Pager() {
    stop_.cancel();
    thread_.join();
  }
  Result<End> end() {
    if (ended_.wait_for(Seconds(30)) == std::future_status::ready) return ended_.get();
    return fail(Errc::timeout, "it serves on");
  }
  Result<End> stop() {
    stop_.cancel();
    return end();
  }

  std::unique_ptr<UserfaultPageIn> loop;

 private:
  const MonotonicClock clock_;
  CancelSignal stop_;
  std::future<Result<End>> ended_;
  std::thread thread_;
};

struct Guest {
  explicit Guest(Backing backing = Backing::anonymous,
                 std::uint64_t features = UFFD_FEATURE_EVENT_REMOVE)
      : layout(layout_with(backing == Backing::huge_pages ? kHugeBytes : kPageSizeBytes)),
        supply(layout),
        child(kFaultingPages, backing, features) {
    for (std::uint64_t page = 0; page < kFaultingPages; ++page) {
      if (!expected_zero(page)) supply.set_page(PageIndex{page}, content_of(page, 1));
    }
  }
  MemoryLayout layout;
  MemoryPageSupply supply;
  ChildVmm child;
};

UserfaultPageInOptions with_order(PrefetchOrder order) {
  return {.page_in = {.order = order}};
}

// All pages are there, the guest found the right ones, on demand and without.
void expect_whole_guest(Backing backing) {
  Guest guest(backing);
  Pager pager(guest.child.vmm(), guest.layout, guest.supply, with_order(PrefetchOrder::linear));
  guest.child.expect_right(GuestTask::check, kAll);
  const auto ended = pager.end();
  ASSERT_TRUE(ended) << ended.error().message;
  EXPECT_EQ(*ended, End::all_there);
  EXPECT_EQ(pager.loop->figures().pages_there, kFaultingPages);
}

TEST(UserfaultPageIn, BringsAnonymousMemory) {
  expect_whole_guest(Backing::anonymous);
}

TEST(UserfaultPageIn, BringsAMemoryFile) {
  expect_whole_guest(Backing::memfd);
}

TEST(UserfaultPageIn, BringsMemoryOfTransparentHugePages) {
  expect_whole_guest(Backing::transparent_huge_pages);
}

TEST(UserfaultPageIn, BringsHugePages) {
  const HugePages reserved(kFaultingPages / kPagesPerHuge);
  ASSERT_TRUE(reserved.enough()) << "no huge pages can be reserved: root can";
  expect_whole_guest(Backing::huge_pages);
}

TEST(UserfaultPageIn, EndsWithItsVmm) {
  Guest guest;
  UserfaultPageInOptions options = with_order(PrefetchOrder::linear);
  options.serve_until = ServeUntil::vmm_ends;
  Pager pager(guest.child.vmm(), guest.layout, guest.supply, options);
  guest.child.expect_right(GuestTask::check, kAll);
  guest.child.end();
  const auto ended = pager.end();
  ASSERT_TRUE(ended) << ended.error().message;
  EXPECT_EQ(*ended, End::vmm_ended);
}

// The fault was read by the first pager and is told to nobody again by itself.
TEST(UserfaultPageIn, WhoWaitedForAPagerThatStoppedGetsItsPageFromTheNext) {
  Guest guest;
  MemoryPageSupply hanging(guest.layout, MemoryPageSupply::Answers::when_told);
  for (std::uint64_t page = 0; page < kFaultingPages; ++page) {
    hanging.set_page(PageIndex{page}, content_of(page, 1));
  }
  {
    Pager first(guest.child.vmm(), guest.layout, hanging, with_order(PrefetchOrder::none));
    guest.child.begin(GuestTask::check, run(1, 5));
    while (first.loop->figures().faults == 0) std::this_thread::yield();
    EXPECT_FALSE(first.stop());
  }
  EXPECT_FALSE(guest.child.has_answered());
  Pager second(guest.child.vmm(), guest.layout, guest.supply, with_order(PrefetchOrder::none));
  const auto answer = guest.child.answer();
  ASSERT_TRUE(answer) << "the guest hangs";
  EXPECT_EQ(answer->wrong_pages, 0U);
}

TEST(UserfaultPageIn, WhatAnEarlierPagerBroughtIsFoundAndNotReadAgain) {
  Guest guest;
  {
    Pager first(guest.child.vmm(), guest.layout, guest.supply, with_order(PrefetchOrder::none));
    guest.child.expect_right(GuestTask::check, run(0, kPagesPerHuge));
  }
  MemoryPageSupply rest(guest.layout);
  for (std::uint64_t page = kPagesPerHuge; page < kFaultingPages; ++page) {
    if (!expected_zero(page)) rest.set_page(PageIndex{page}, content_of(page, 1));
  }
  Pager second(guest.child.vmm(), guest.layout, rest, with_order(PrefetchOrder::linear));
  EXPECT_GE(second.loop->figures().pages_found, kPagesPerHuge);
  ASSERT_TRUE(second.end());
  guest.child.expect_right(GuestTask::check, kAll);
}

// As the test above, from what the kernel refuses alone: the second supply has something else in those pages.
TEST(UserfaultPageIn, WithoutPageTablesNothingThatIsThereIsOverwritten) {
  Guest guest;
  {
    Pager first(guest.child.vmm(), guest.layout, guest.supply, with_order(PrefetchOrder::none));
    guest.child.expect_right(GuestTask::check, run(0, kPagesPerHuge));
  }
  MemoryPageSupply other(guest.layout);
  for (std::uint64_t page = 0; page < kFaultingPages; ++page) {
    const std::uint64_t age = page < kPagesPerHuge ? 2 : 1;
    if (age == 2 || !expected_zero(page)) other.set_page(PageIndex{page}, content_of(page, age));
  }
  UserfaultVmm vmm = guest.child.vmm();
  vmm.tables.reset();
  Pager second(std::move(vmm), guest.layout, other, with_order(PrefetchOrder::linear));
  ASSERT_TRUE(second.end());
  guest.child.expect_right(GuestTask::check, kAll);
}

TEST(UserfaultPageIn, WhatTheGuestGaveBackIsZeroAndKeptForThePagerAfterIt) {
  Guest guest;
  ToldRemovals reports;
  UserfaultPageInOptions options = with_order(PrefetchOrder::none);
  options.serve_until = ServeUntil::vmm_ends;
  Pager pager(guest.child.vmm(), guest.layout, guest.supply, options, &reports);
  guest.child.expect_right(GuestTask::remove, run(10, 5));
  guest.child.expect_right(GuestTask::check_zero, run(10, 5));
  guest.child.expect_right(GuestTask::check, run(15, 20));
  EXPECT_FALSE(pager.stop());
  EXPECT_THAT(reports.kept, testing::ElementsAre(run(10, 5)));
}

// A hole in a memory file is told by nobody but the VMM.
TEST(UserfaultPageIn, AHoleThatWasReportedIsZero) {
  Guest guest(Backing::memfd);
  ToldRemovals reports;
  UserfaultPageInOptions options = with_order(PrefetchOrder::none);
  options.serve_until = ServeUntil::vmm_ends;
  reports.report(run(100, 8));  // before the pager began
  Pager pager(guest.child.vmm(), guest.layout, guest.supply, options, &reports);
  guest.child.expect_right(GuestTask::check_zero, run(100, 8));
  reports.report(run(200, 8));
  guest.child.expect_right(GuestTask::make_hole, run(200, 8));
  guest.child.expect_right(GuestTask::check_zero, run(200, 8));
  guest.child.expect_right(GuestTask::check, run(208, 20));
}

TEST(UserfaultPageIn, APageThatWasThereAndIsMissingAgainIsZero) {
  Guest guest(Backing::memfd);
  UserfaultPageInOptions options = with_order(PrefetchOrder::linear);
  options.serve_until = ServeUntil::vmm_ends;
  Pager pager(guest.child.vmm(), guest.layout, guest.supply, options);
  guest.child.expect_right(GuestTask::check, kAll);
  guest.child.expect_right(GuestTask::make_hole, run(300, 4));
  guest.child.expect_right(GuestTask::check_zero, run(300, 4));
}

void expect_bus_errors(Backing backing, std::uint64_t bad_page, PageRun poisoned) {
  Guest guest(backing);
  guest.supply.break_page(PageIndex{bad_page});
  UserfaultPageInOptions options = with_order(PrefetchOrder::linear);
  options.bad_pages = BadPages::poison;
  Pager pager(guest.child.vmm(), guest.layout, guest.supply, options);
  guest.child.begin(GuestTask::check, kAll);
  const auto answer = guest.child.answer();
  ASSERT_TRUE(answer) << "the guest hangs";
  EXPECT_EQ(answer->wrong_pages, 0U) << "the first is page " << answer->first_wrong;
  EXPECT_EQ(answer->bus_errors, poisoned.pages);
  EXPECT_EQ(answer->last_bus_error, raw(poisoned.first) + poisoned.pages - 1);
  ASSERT_TRUE(pager.end());
  EXPECT_EQ(pager.loop->figures().pages_poisoned, poisoned.pages);
}

TEST(UserfaultPageIn, APoisonedPageIsABusErrorAndAllOthersAreRight) {
  expect_bus_errors(Backing::anonymous, 500, run(500, 1));
}

TEST(UserfaultPageIn, APoisonedPageOfAMemoryFileIsABusError) {
  expect_bus_errors(Backing::memfd, 500, run(500, 1));
}

TEST(UserfaultPageIn, AHugePageWithABadPartIsPoisonedAsAWhole) {
  const HugePages reserved(kFaultingPages / kPagesPerHuge);
  ASSERT_TRUE(reserved.enough()) << "no huge pages can be reserved: root can";
  expect_bus_errors(Backing::huge_pages, kPagesPerHuge + 11, run(kPagesPerHuge, kPagesPerHuge));
}

TEST(UserfaultPageIn, WhoWaitsForABadPageWaitsAndIsServedOnceTheStorageHasRecovered) {
  Guest guest;
  guest.supply.break_page(PageIndex{500});
  bool was_bad = false;
  Pager pager(guest.child.vmm(), guest.layout, guest.supply, with_order(PrefetchOrder::linear),
              nullptr, [&](const UserfaultPageInFigures& figures) {
                if (figures.pages_bad == 0 || figures.pages_there < kFaultingPages - 1) return;
                was_bad = true;
                guest.supply.mend_page(PageIndex{500});
              });
  guest.child.expect_right(GuestTask::check, run(501, 100));
  guest.child.expect_right(GuestTask::check, kAll);
  ASSERT_TRUE(pager.end());
  EXPECT_TRUE(was_bad);
  EXPECT_EQ(pager.loop->figures().pages_bad, 0U);
}

TEST(UserfaultPageIn, ABadPageIsAnErrorWhenNothingElseIsMissing) {
  Guest guest;
  guest.supply.break_page(PageIndex{500});
  Pager pager(guest.child.vmm(), guest.layout, guest.supply, with_order(PrefetchOrder::linear));
  const auto ended = pager.end();
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().code, Errc::corrupt);
  EXPECT_THAT(ended.error().message, HasSubstr("page 500"));
  EXPECT_EQ(pager.loop->figures().pages_there, kFaultingPages - 1);
}

TEST(UserfaultPageIn, HeldPrefetchBringsNothingUntilItIsReleased) {
  Guest guest;
  const MonotonicClock clock;
  const UserfaultPageInOptions options = with_order(PrefetchOrder::hot);
  // The first of what prefetch would bring.
  std::vector<PageIndex> recent;
  for (std::uint64_t page = 700; page < 900; ++page) recent.push_back(PageIndex{page});
  guest.supply.set_recent(std::move(recent));
  auto loop =
      UserfaultPageIn::make(guest.child.vmm(), guest.layout, guest.supply, nullptr, options, clock);
  ASSERT_TRUE(loop) << loop.error().message;
  (*loop)->hold_prefetch();
  CancelSignal stop;
  std::jthread thread([&] {
    const auto ended = (*loop)->serve(stop, [](const UserfaultPageInFigures&) {});
    EXPECT_TRUE(ended);
  });
  guest.child.expect_right(GuestTask::check, run(40, 1));
  guest.child.expect_right(GuestTask::check, run(400, 1));
  EXPECT_LE((*loop)->figures().pages_there, 2 * options.page_in.pages_around_lone_fault);
  (*loop)->release_prefetch(Nanoseconds(0));
  thread.join();
  EXPECT_EQ((*loop)->figures().pages_there, kFaultingPages);
}

TEST(UserfaultPageIn, TheOrderOfFirstTouchesIsReplayed) {
  TouchRecord record;
  {
    Guest guest;
    Pager pager(guest.child.vmm(), guest.layout, guest.supply, with_order(PrefetchOrder::none));
    guest.child.expect_right(GuestTask::check, run(800, 1));
    guest.child.expect_right(GuestTask::check, run(80, 1));
    EXPECT_FALSE(pager.stop());
    record = pager.loop->touches();
  }
  ASSERT_GE(record.runs().size(), 2U);
  EXPECT_EQ(raw(record.runs().front().first), 800U);
  Guest again;
  UserfaultPageInOptions options = with_order(PrefetchOrder::recorded);
  options.page_in.recorded = record.runs();
  Pager pager(again.child.vmm(), again.layout, again.supply, options);
  ASSERT_TRUE(pager.end());
  ASSERT_FALSE(again.supply.started().empty());
  EXPECT_GE(raw(again.supply.started().front().run.first), 800U);
  again.child.expect_right(GuestTask::check, kAll);
}

}  // namespace
}  // namespace pageferry
