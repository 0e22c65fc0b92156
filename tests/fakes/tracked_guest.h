// TrackedGuest: a guest of two RAM blocks in memory of the test process, and one of the sources that follow its page tables.
//
// Thread rule: one thread, the test's.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <initializer_list>
#include <memory>
#include <string>
#include <tuple>

#include "fakes/page_content.h"
#include "fakes/userfault_memory.h"
#include "pager/async_write_protect_source.h"
#include "pager/dirty_source.h"
#include "pager/sync_write_protect_source.h"

namespace pageferry::testing_support {

// As on a new kernel, on Linux 6.4, and on Debian 12's 6.1.
enum class Tracking : std::uint8_t { async, sync, sync_populated };

inline std::string name_of(Tracking tracking) {
  return tracking == Tracking::async  ? "Async"
         : tracking == Tracking::sync ? "Sync"
                                      : "SyncPopulated";
}

inline std::string name_of_tracked_backing(
    const testing::TestParamInfo<std::tuple<Tracking, Backing>>& info) {
  return name_of(std::get<0>(info.param)) +
         (std::get<1>(info.param) == Backing::memfd ? "OnMemfd" : "OnAnonymousMemory");
}

inline std::unique_ptr<DirtySource> make_source(Tracking tracking, const MemoryLayout& layout,
                                                std::vector<std::uint64_t> addresses) {
  if (tracking == Tracking::async) {
    return std::make_unique<AsyncWriteProtectSource>(layout, std::move(addresses));
  }
  return std::make_unique<SyncWriteProtectSource>(
      layout, std::move(addresses),
      tracking == Tracking::sync ? SyncWriteProtectSource::AbsentPages::marked_if_possible
                                 : SyncWriteProtectSource::AbsentPages::populated);
}

struct TrackedGuest {
  static constexpr std::uint64_t kRamPages = 100;
  static constexpr std::uint64_t kBiosPages = 28;
  static constexpr std::uint64_t kPages = kRamPages + kBiosPages;

  TrackedGuest(Tracking tracking, Backing backing)
      : ram(bytes_of_pages(kRamPages), backing),
        bios(bytes_of_pages(kBiosPages), backing),
        source(make_source(tracking, layout, {ram.address(), bios.address()})) {}

  void start_and_collect_all() {
    const auto started = source->start();
    ASSERT_TRUE(started) << started.error().message;
    EXPECT_EQ(collected().count(), kPages);
  }
  DirtyBitmap collected() {
    DirtyBitmap dirty(kPages);
    const auto done = source->collect_into(dirty);
    EXPECT_TRUE(done) << done.error().message;
    return dirty;
  }
  // The same of a guest that is paused, piece by piece.
  DirtyBitmap collected_paused() {
    DirtyBitmap dirty(kPages);
    for (PageIndex from{0}; from < PageIndex{kPages};) {
      const auto next = source->collect_paused_into(dirty, from);
      EXPECT_TRUE(next) << next.error().message;
      if (!next) return dirty;
      EXPECT_TRUE(from < *next && *next <= PageIndex{kPages});
      from = *next;
    }
    return dirty;
  }
  std::byte* page(std::uint64_t index) const {
    return index < kRamPages ? ram.page(index) : bios.page(index - kRamPages);
  }
  void write(std::uint64_t index, std::byte value = std::byte{0x5a}) const {
    *static_cast<volatile std::byte*>(page(index)) = value;
  }
  std::byte read(std::uint64_t index) const {
    return *static_cast<const volatile std::byte*>(page(index));
  }
  static DirtyBitmap with(std::initializer_list<PageRun> runs) {
    DirtyBitmap bitmap(kPages);
    for (const PageRun& each : runs) bitmap.set(each);
    return bitmap;
  }
  static DirtyBitmap nothing() { return DirtyBitmap(kPages); }

  MemoryLayout layout = layout_of({{"pc.ram", kRamPages}, {"pc.bios", kBiosPages}});
  UserfaultMemory ram;
  UserfaultMemory bios;
  std::unique_ptr<DirtySource> source;
};

// What a failing test prints.
inline std::string text_of(const DirtyBitmap& bitmap) {
  std::string text;
  PageIndex from{0};
  while (const auto next = bitmap.next_run(from, bitmap.pages())) {
    text += "[" + std::to_string(raw(next->first)) + " +" + std::to_string(next->pages) + "]";
    from = next->first + next->pages;
  }
  return text.empty() ? "nothing" : text;
}

}  // namespace pageferry::testing_support

namespace pageferry {
inline void PrintTo(const DirtyBitmap& bitmap, std::ostream* out) {
  *out << testing_support::text_of(bitmap);
}
}  // namespace pageferry
