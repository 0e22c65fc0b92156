// A page file over a base is either committed and complete, or refused, whatever the moment at which the power goes; and its base is as it
// was in either case.
//
// Method: as page_file_crash_test.cc. The base is on a disk of its own, which nobody may write to; the file over it is written once for each
// write and sync with the power cut there, and opened in what the disk may then hold.
#include <gtest/gtest.h>
#include <malloc.h>

#include <random>

#include "fakes/page_file_chain.h"

namespace pageferry {
namespace {

using namespace testing_support;

constexpr unsigned kBase = 1;
constexpr unsigned kFile = 2;
constexpr std::uint64_t kStoredInBase = 500;

std::uint64_t age_in_the_end(std::uint64_t page) {
  if (page % 31 == 4) return 3;  // the blackout's
  if (page % 9 == 2) return 2;
  return page < kStoredInBase ? 1 : 0;
}

void put_changes(PageFileWriter& sink, bool& good) {
  for (std::uint64_t page = 2; page < PageFileChain::kPages; page += 9) {
    good = good && put(sink, page, 2);
  }
  sink.begin_pass(2);
  good = good && put(sink, 2, 2) && sink.begin_blackout();
  for (std::uint64_t page = 4; page < PageFileChain::kPages; page += 31) {
    good = good && put(sink, page, 3);
  }
  good = good && sink.finish_and_commit();
}

class PageFileBaseCrashTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    (void)::mallopt(M_MMAP_THRESHOLD, 1 << 30);
    (void)::mallopt(M_TRIM_THRESHOLD, 1 << 30);
  }
  void SetUp() override {
    chain_.write(kBase, PageFileChain::kNone,
                 [](PageFileWriter& sink) { put_all(sink, kStoredInBase, 1); });
    base_ = chain_.load(kBase);
    auto plan = plan_bases(base_);
    ASSERT_TRUE(plan.has_value());
    plan_ = *plan;
  }
  // True when the commit returned success.
  bool write_file(MemoryDisk& disk) {
    auto writer = PageFileWriter::make(std::make_unique<MemoryStorage>(disk),
                                       PageFileChain::ids(kFile), small_options(), real_clock());
    if (!writer || !(*writer)->begin(PageFileChain::layout())) return false;
    if (!(*writer)->use_base(base_, plan_)) return false;
    (*writer)->begin_pass(1);
    bool good = true;
    put_changes(**writer, good);
    return good;
  }
  enum class Verdict { refused, complete, wrong };
  Verdict judge(std::vector<std::byte> image) {
    chain_.disk(kFile).live = std::move(image);
    auto reader = chain_.open(kFile);
    if (!reader) return Verdict::refused;
    for (std::uint64_t page = 0; page < PageFileChain::kPages; ++page) {
      const std::uint64_t age = age_in_the_end(page);
      const bool good = age == 0 ? (*reader)->is_zero(PageIndex{page}) : holds(**reader, page, age);
      if (!good) return Verdict::wrong;
    }
    return Verdict::complete;
  }
  static std::vector<std::vector<std::byte>> images_after_cut(const MemoryDisk& disk,
                                                              std::uint64_t seed) {
    std::mt19937_64 random(seed);
    const std::size_t writes = disk.unsynced.size();
    std::vector<std::vector<std::byte>> images;
    images.push_back(disk.after_power_cut([](std::size_t) { return false; }));
    images.push_back(disk.after_power_cut([](std::size_t) { return true; }));
    images.push_back(disk.after_power_cut([&](std::size_t i) { return i + 1 != writes; }));
    images.push_back(disk.after_power_cut([&](std::size_t i) { return i + 1 == writes; }));
    images.push_back(disk.after_power_cut([&](std::size_t) { return random() % 2 == 0; }));
    // Torn: the first half of each.
    std::vector<std::byte> torn = disk.durable;
    for (const UnsyncedWrite& write : disk.unsynced) {
      MemoryDisk::put(torn, write.offset, std::span(write.bytes).first(write.bytes.size() / 2));
    }
    images.push_back(std::move(torn));
    return images;
  }

  PageFileChain chain_;
  PageFileImage base_;
  BasePlan plan_;
};

TEST_F(PageFileBaseCrashTest, UndisturbedItIsCompleteAndDurable) {
  MemoryDisk disk;
  ASSERT_TRUE(write_file(disk));
  EXPECT_EQ(judge(disk.durable), Verdict::complete);
}

TEST_F(PageFileBaseCrashTest, ACutAtAnyWriteOrSyncLeavesItCompleteOrRefused) {
  MemoryDisk whole;
  ASSERT_TRUE(write_file(whole));
  ASSERT_GT(whole.operations, 10U);
  unsigned complete = 0;
  for (std::uint64_t cut = 0; cut < whole.operations; ++cut) {
    MemoryDisk disk;
    disk.power_lost_at = cut;
    ASSERT_FALSE(write_file(disk)) << "commit succeeded without power at operation " << cut;
    for (std::vector<std::byte>& image : images_after_cut(disk, cut)) {
      const Verdict verdict = judge(std::move(image));
      ASSERT_NE(verdict, Verdict::wrong) << "power cut at operation " << cut;
      complete += verdict == Verdict::complete ? 1U : 0U;
    }
  }
  // Only where the commit record was written and not synced yet.
  EXPECT_GT(complete, 0U);
  EXPECT_LT(complete, 6U);
}

}  // namespace
}  // namespace pageferry
