// VmmDirtySource, and with it what DirtySource does for every source: all pages first, reports by hand, all again after an error.
#include "pager/vmm_dirty_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fakes/page_content.h"

namespace pageferry {
namespace {

using namespace testing_support;

using testing::HasSubstr;

constexpr std::uint64_t kRamPages = 100;  // the second block begins in the middle of a word
constexpr std::uint64_t kBiosPages = 70;
constexpr std::uint64_t kTrackedPages = kRamPages + kBiosPages;

// A VMM that logs the writes that the test makes.
class LoggingVmm final : public VmmDirtyLog {
 public:
  Result<void> start_log() override {
    if (refuses_to_start) return fail(Errc::busy, "a migration is running");
    logs = true;
    return {};
  }
  Result<void> fetch_and_rearm(std::size_t block, std::span<std::uint64_t> words) override {
    if (block == 1 && std::exchange(fails_once, false)) return fail(Errc::vmm, "vCPU 3 is stuck");
    for (const std::uint64_t page : std::exchange(written[block], {})) {
      words[page / 64] |= std::uint64_t{1} << (page % 64);
    }
    return {};
  }
  Result<void> stop_log() override {
    logs = false;
    return {};
  }
  void write(std::size_t block, std::uint64_t page) { written[block].push_back(page); }

  bool logs = false;
  bool refuses_to_start = false;
  bool fails_once = false;
  std::array<std::vector<std::uint64_t>, 2> written;
};

class VmmDirtySourceTest : public testing::Test {
 protected:
  DirtyBitmap collected() {
    DirtyBitmap dirty(kTrackedPages);
    const auto done = source_.collect_into(dirty);
    EXPECT_TRUE(done) << done.error().message;
    return dirty;
  }
  void start_and_collect_all() {
    ASSERT_TRUE(source_.start());
    EXPECT_EQ(collected().count(), kTrackedPages);
  }
  static DirtyBitmap with(std::initializer_list<PageRun> runs) {
    DirtyBitmap bitmap(kTrackedPages);
    for (const PageRun& each : runs) bitmap.set(each);
    return bitmap;
  }

  MemoryLayout layout_ =
      testing_support::layout_of({{"pc.ram", kRamPages}, {"pc.bios", kBiosPages}});
  LoggingVmm vmm_;
  VmmDirtySource source_{layout_, vmm_};
};

TEST_F(VmmDirtySourceTest, EveryPageIsDirtyOnce) {
  start_and_collect_all();
  EXPECT_TRUE(collected().empty());
}

TEST_F(VmmDirtySourceTest, WhatTheVmmLogsIsReportedOnceInEachBlock) {
  start_and_collect_all();
  for (const std::uint64_t page : {0U, 63U, 64U, 99U}) vmm_.write(0, page);
  for (const std::uint64_t page : {0U, 28U, 69U}) vmm_.write(1, page);
  EXPECT_EQ(collected(),
            with({run(0, 1), run(63, 2), run(99, 1), run(100, 1), run(128, 1), run(169, 1)}));
  EXPECT_TRUE(collected().empty());
}

TEST_F(VmmDirtySourceTest, WhatIsReportedByHandIsDirtyOnce) {
  start_and_collect_all();
  source_.mark_dirty(run(98, 4));
  source_.discard(run(150, 2));
  EXPECT_EQ(collected(), with({run(98, 4), run(150, 2)}));
  EXPECT_TRUE(collected().empty());
}

TEST_F(VmmDirtySourceTest, ACollectionAddsToWhatIsThere) {
  start_and_collect_all();
  vmm_.write(0, 7);
  DirtyBitmap dirty = with({run(3, 1)});
  ASSERT_TRUE(source_.collect_into(dirty));
  EXPECT_EQ(dirty, with({run(3, 1), run(7, 1)}));
}

TEST_F(VmmDirtySourceTest, AfterAFailedCollectionAllIsDirty) {
  start_and_collect_all();
  vmm_.write(0, 7);
  vmm_.fails_once = true;
  DirtyBitmap dirty(kTrackedPages);
  const auto failed = source_.collect_into(dirty);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, Errc::vmm);
  EXPECT_THAT(failed.error().message, HasSubstr("vCPU 3 is stuck"));
  EXPECT_EQ(collected().count(), kTrackedPages);
  EXPECT_TRUE(collected().empty());
}

TEST_F(VmmDirtySourceTest, AVmmThatRefusesIsNotStarted) {
  vmm_.refuses_to_start = true;
  const auto started = source_.start();
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, Errc::busy);
  EXPECT_FALSE(source_.is_started());
  EXPECT_TRUE(source_.stop());
}

TEST_F(VmmDirtySourceTest, StoppedAndStartedAgainAllIsDirtyAgain) {
  start_and_collect_all();
  EXPECT_TRUE(vmm_.logs);
  ASSERT_TRUE(source_.stop());
  EXPECT_FALSE(vmm_.logs);
  start_and_collect_all();
}

TEST_F(VmmDirtySourceTest, TheDestructorStopsTheLog) {
  {
    VmmDirtySource source(layout_, vmm_);
    ASSERT_TRUE(source.start());
    EXPECT_TRUE(vmm_.logs);
  }
  EXPECT_FALSE(vmm_.logs);
}

TEST_F(VmmDirtySourceTest, AbortsWhenItIsUsedInTheWrongOrder) {
  DirtyBitmap dirty(kTrackedPages);
  EXPECT_DEATH(static_cast<void>(source_.collect_into(dirty)), "broken invariant");
  ASSERT_TRUE(source_.start());
  EXPECT_DEATH(static_cast<void>(source_.start()), "broken invariant");
  DirtyBitmap other(kTrackedPages + 1);
  EXPECT_DEATH(static_cast<void>(source_.collect_into(other)), "broken invariant");
  EXPECT_DEATH(source_.mark_dirty(run(kTrackedPages, 1)), "broken invariant");
}

}  // namespace
}  // namespace pageferry
