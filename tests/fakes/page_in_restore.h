// Restore: a PageIn between a supply and an outlet in memory, on a clock that the test moves.
//
// Thread rule: one thread.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <optional>
#include <utility>

#include "fakes/manual_clock.h"
#include "fakes/memory_page_supply.h"
#include "fakes/page_content.h"
#include "fakes/recording_outlet.h"
#include "pager/page_in.h"

namespace pageferry::testing_support {

using Answers = MemoryPageSupply::Answers;

inline MemoryLayout small_block(std::uint64_t pages) {
  return layout_of_blocks({RamBlock{.name = "ram", .length_bytes = bytes_of_pages(pages)}});
}

inline MemoryLayout huge_block(std::uint64_t units) {
  return layout_of_blocks({RamBlock{
      .name = "ram", .length_bytes = units * kHugeBytes, .backing_page_bytes = kHugeBytes}});
}

// A guest whose page p holds (p % 251) + 1 in every byte.
struct Restore {
  explicit Restore(MemoryLayout memory, Answers answers = Answers::at_once)
      : layout(std::move(memory)), supply(layout, answers) {}
  Restore& fill() {
    for (std::uint64_t page = 0; page < layout.pages(); ++page) store(page);
    return *this;
  }
  void store(std::uint64_t page) {
    supply.set_filled(PageIndex{page}, static_cast<unsigned char>(page % 251 + 1));
  }
  PageIn& begin(PageInOptions options) {
    page_in.emplace(supply, layout, SentMap(layout.pages()), outlet, clock, options);
    return *page_in;
  }
  PageIn& begin(PrefetchOrder order) { return begin({.order = order}); }
  void steps(int count = 8) {
    for (int i = 0; i < count; ++i) ASSERT_TRUE(page_in->step());
  }
  // Steps until all is sent, as a loop without any waiting would.
  void run_to_end() {
    for (int i = 0; i < 100000 && !page_in->complete(); ++i) {
      supply.finish_all();
      ASSERT_TRUE(page_in->step());
    }
    ASSERT_TRUE(page_in->complete());
  }
  void expect_each_page_once_with_its_content() const {
    std::map<std::uint64_t, int> times;
    for (const RecordingOutlet::Sent& sent : outlet.sent()) {
      ++times[raw(sent.page)];
      const bool zero = supply.is_zero(sent.page);
      EXPECT_EQ(sent.first_byte, zero ? 0 : raw(sent.page) % 251 + 1) << raw(sent.page);
    }
    EXPECT_EQ(times.size(), layout.pages());
    for (const auto& [page, count] : times) EXPECT_EQ(count, 1) << page;
    EXPECT_EQ(supply.unreleased(), 0U);
  }
  MemoryLayout layout;
  MemoryPageSupply supply;
  RecordingOutlet outlet;
  ManualClock clock;
  std::optional<PageIn> page_in;
};

inline PageRun one(std::uint64_t page) {
  return {PageIndex{page}, 1};
}

}  // namespace pageferry::testing_support
