// Passes over a guest's memory: each page as it is at last, no page twice
// without need, nothing forgotten after an error.
#include "pager/page_out.h"

#include <gtest/gtest.h>

#include <functional>

#include "fakes/manual_clock.h"
#include "fakes/memory_page_sink.h"
#include "transport/io_buffer.h"

namespace pageferry {
namespace {

using fakes::MemoryPageSink;
using testing_support::ManualClock;

// The guest's writes are what a test says; a collection can be made to fail.
class ScriptedSource final : public DirtySource {
 public:
  explicit ScriptedSource(const MemoryLayout& layout) : DirtySource(layout) {}
  std::optional<Error> fetch_error;

 protected:
  Result<void> begin() override { return {}; }
  Result<void> fetch(DirtyBitmap&) override {
    if (fetch_error) return tl::make_unexpected(*fetch_error);
    return {};
  }
  Result<void> end() override { return {}; }
};

// Tells the test before each page, and lets a page take its time.
class ObservedSink final : public MemoryPageSink {
 public:
  explicit ObservedSink(ManualClock& clock) : clock_(clock) {}
  Result<void> put_page(PageIndex page, PageBytes bytes) override {
    clock_.advance(per_page);
    PF_TRY(MemoryPageSink::put_page(page, bytes));
    ++puts;
    if (after_put) after_put(page);
    return {};
  }
  Nanoseconds per_page{Milliseconds(1)};
  std::uint64_t puts = 0;
  std::function<void(PageIndex)> after_put;

 private:
  ManualClock& clock_;
};

class PageOutTest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kFirstPages = 40;
  static constexpr std::uint64_t kSecondPages = 24;
  static constexpr std::uint64_t kPages = kFirstPages + kSecondPages;

  void SetUp() override {
    RamBlock first;
    first.name = "low";
    first.length_bytes = bytes_of_pages(kFirstPages);
    RamBlock second;
    second.name = "high";
    second.length_bytes = bytes_of_pages(kSecondPages);
    layout_ = MemoryLayout::make({first, second}).value();
    // The second block lies below the first, with a gap between.
    bytes_ = AlignedMemory::map(bytes_of_pages(2 * kPages)).value();
    low_ = bytes_.data() + bytes_of_pages(kPages);
    memory_.emplace(GuestMemory::make(layout_, {low_, bytes_.data()}).value());
    source_.emplace(layout_);
    ASSERT_TRUE(source_->start());
    ASSERT_TRUE(sink_.begin(layout_));
    for (std::uint64_t page = 0; page < kPages; ++page) set(page, 1);
    page_out_.emplace(*memory_, *source_, sink_, cancel_, clock_);
  }
  std::byte* at(std::uint64_t page) {
    return page < kFirstPages ? low_ + bytes_of_pages(page)
                              : bytes_.data() + bytes_of_pages(page - kFirstPages);
  }
  void set(std::uint64_t page, std::uint8_t value) {
    *at(page) = std::byte{value};
    at(page)[1] = static_cast<std::byte>(page);
  }
  void guest_writes(std::uint64_t page, std::uint8_t value) {
    set(page, value);
    source_->mark_dirty({PageIndex{page}, 1});
  }
  Result<BrownoutStats> brownout() { return page_out_->run_brownout(limits_, {}); }
  void expect_stored_as_it_is() {
    ASSERT_EQ(sink_.pages.size(), kPages);
    for (std::uint64_t page = 0; page < kPages; ++page) {
      const std::vector<std::byte> now(at(page), at(page) + kPageSizeBytes);
      EXPECT_EQ(sink_.pages[page], now) << page;
    }
  }

  ManualClock clock_;
  CancelSignal cancel_;
  ConvergenceLimits limits_;
  MemoryLayout layout_;
  AlignedMemory bytes_;
  std::byte* low_ = nullptr;
  std::optional<GuestMemory> memory_;
  std::optional<ScriptedSource> source_;
  ObservedSink sink_{clock_};
  std::optional<PageOut> page_out_;
};

TEST_F(PageOutTest, AQuietGuestNeedsOnePass) {
  const auto stats = brownout();
  ASSERT_TRUE(stats) << stats.error().message;
  EXPECT_EQ(stats->end, BrownoutEnd::nothing_left);
  EXPECT_EQ(sink_.puts, kPages);
  EXPECT_EQ(sink_.passes, (std::vector<std::uint32_t>{1}));
  expect_stored_as_it_is();
}

TEST_F(PageOutTest, WhatIsWrittenBehindAPassIsInTheNextOne) {
  limits_.downtime_max = Nanoseconds(1);
  sink_.after_put = [this](PageIndex page) {
    if (raw(page) == 50 && sink_.passes.back() == 1) guest_writes(7, 2);
  };
  const auto stats = brownout();
  ASSERT_TRUE(stats) << stats.error().message;
  EXPECT_EQ(stats->end, BrownoutEnd::nothing_left);
  ASSERT_EQ(stats->passes.size(), 2U);
  EXPECT_EQ(stats->passes[1].pages, 1U);
  EXPECT_EQ(sink_.puts, kPages + 1);
  expect_stored_as_it_is();
}

TEST_F(PageOutTest, WhatIsWrittenAheadOfAPassIsStoredAgainAllTheSame) {
  limits_.downtime_max = Nanoseconds(1);
  sink_.after_put = [this](PageIndex page) {
    if (raw(page) == 7 && sink_.passes.back() == 1) guest_writes(50, 2);
  };
  ASSERT_TRUE(brownout());
  EXPECT_EQ(sink_.puts, kPages + 1);
  expect_stored_as_it_is();
}

TEST_F(PageOutTest, ARemainderWithinTheBudgetEndsTheBrownout) {
  // 1 ms a page; 3 pages are dirty after the first pass.
  limits_.downtime_max = Milliseconds(4);
  sink_.after_put = [this](PageIndex page) {
    if (raw(page) >= 61) guest_writes(raw(page) - 61, 2);
  };
  const auto stats = brownout();
  ASSERT_TRUE(stats) << stats.error().message;
  EXPECT_EQ(stats->end, BrownoutEnd::catches_up);
  EXPECT_EQ(stats->facts.remaining_bytes, bytes_of_pages(3));
  EXPECT_EQ(stats->passes.size(), 1U);
}

TEST_F(PageOutTest, AGuestThatIsFasterEndsAtThePassLimit) {
  limits_.downtime_max = Milliseconds(4);
  limits_.passes_max = 3;
  sink_.after_put = [this](PageIndex page) { guest_writes(raw(page), 2); };
  const auto stats = brownout();
  ASSERT_TRUE(stats) << stats.error().message;
  EXPECT_EQ(stats->end, BrownoutEnd::pass_limit);
  EXPECT_EQ(stats->passes.size(), 3U);
}

TEST_F(PageOutTest, AfterEachPassTheSinkIsToldHowMuchABlackoutWouldBring) {
  limits_.downtime_max = Nanoseconds(1);
  sink_.after_put = [this](PageIndex page) {
    if (raw(page) < 5 && sink_.passes.back() == 1) guest_writes(raw(page), 2);
  };
  ASSERT_TRUE(brownout());
  EXPECT_EQ(sink_.prepared_for_bytes, (std::vector<std::uint64_t>{bytes_of_pages(5), 0}));
}

TEST_F(PageOutTest, WhatIsWrittenWhileTheSinkPreparesCountsAsLeft) {
  limits_.downtime_max = Milliseconds(1);
  sink_.on_prepare = [this] {
    if (sink_.prepared_for_bytes.size() > 1) return;
    for (std::uint64_t page = 0; page < 5; ++page) guest_writes(page, 2);
  };
  const auto stats = brownout();
  ASSERT_TRUE(stats) << stats.error().message;
  EXPECT_EQ(stats->passes.size(), 2U);
  EXPECT_EQ(sink_.prepared_for_bytes, (std::vector<std::uint64_t>{0, 0}));
}

TEST_F(PageOutTest, TheBlackoutBringsTheRestIntoTheTail) {
  ASSERT_TRUE(brownout());
  guest_writes(3, 9);
  guest_writes(45, 9);
  const auto last = page_out_->run_blackout();
  ASSERT_TRUE(last) << last.error().message;
  EXPECT_EQ(last->pages, 2U);
  EXPECT_EQ(sink_.blackouts, 1);
  EXPECT_EQ(sink_.blackout_puts, 2U);
  EXPECT_TRUE(page_out_->dirty().empty());
  expect_stored_as_it_is();
}

// By a device thread of the VMM, which tells of a write that it made before the pause.
TEST_F(PageOutTest, WhatIsReportedDuringTheBlackoutIsStored) {
  ASSERT_TRUE(brownout());
  guest_writes(45, 9);
  set(3, 9);
  sink_.after_put = [this](PageIndex) { source_->mark_dirty({PageIndex{3}, 1}); };
  const auto last = page_out_->run_blackout();
  ASSERT_TRUE(last) << last.error().message;
  EXPECT_EQ(last->pages, 2U);
  expect_stored_as_it_is();
}

TEST_F(PageOutTest, AReportOfAPageThatTheBlackoutHasStoredIsNothingNew) {
  ASSERT_TRUE(brownout());
  guest_writes(3, 9);
  sink_.after_put = [this](PageIndex) { source_->mark_dirty({PageIndex{3}, 1}); };
  ASSERT_TRUE(page_out_->run_blackout());
  EXPECT_EQ(sink_.blackout_puts, 1U);
}

TEST_F(PageOutTest, AfterAFailedPassAllOfItIsDirtyAgain) {
  ASSERT_TRUE(brownout());
  for (const std::uint64_t page : {3U, 4U, 45U}) guest_writes(page, 9);
  sink_.after_put = [this](PageIndex page) {
    if (raw(page) == 4) sink_.refuse_pages({Errc::io, 0, "the store is gone"});
  };
  const auto last = page_out_->run_blackout();
  ASSERT_FALSE(last);
  EXPECT_EQ(last.error().code, Errc::io);
  EXPECT_EQ(page_out_->dirty().count(), 3U);
  EXPECT_TRUE(page_out_->dirty().is_set(PageIndex{3}));
}

TEST_F(PageOutTest, ASourceThatFailsIsReported) {
  source_->fetch_error = Error{Errc::vmm, 0, "the log is broken"};
  const auto stats = brownout();
  ASSERT_FALSE(stats);
  EXPECT_EQ(stats.error().code, Errc::vmm);
  EXPECT_EQ(sink_.puts, 0U);
}

TEST_F(PageOutTest, ACancelEndsItBetweenRuns) {
  sink_.after_put = [this](PageIndex page) {
    if (raw(page) == kFirstPages - 1) cancel_.cancel();
  };
  const auto stats = brownout();
  ASSERT_FALSE(stats);
  EXPECT_EQ(stats.error().code, Errc::canceled);
  EXPECT_EQ(sink_.puts, kFirstPages);
  EXPECT_EQ(page_out_->dirty().count(), kPages);
}

}  // namespace
}  // namespace pageferry
