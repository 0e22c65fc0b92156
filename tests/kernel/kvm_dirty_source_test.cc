// The sources on a real KVM guest: KVM's dirty log, its dirty rings, and write protection under a vCPU.
//
// Needs /dev/kvm.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "fakes/kvm_guest.h"
#include "fakes/tracked_guest.h"
#include "pager/kvm_dirty_log_source.h"
#include "pager/kvm_dirty_ring_source.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::HasSubstr;

constexpr std::uint64_t kRam = KvmGuest::kBootPages;  // the first page of pc.ram
constexpr std::uint64_t kBios = kRam + KvmGuest::kRamPages;
constexpr std::uint64_t kKvmPages = KvmGuest::kPages;
constexpr std::uint64_t kRingBytes = 65'536;
constexpr std::byte kKvmNew{0x77};

enum class Source : std::uint8_t { log, ring, async, sync };

std::unique_ptr<DirtySource> source_of(Source kind, const KvmGuest& guest) {
  switch (kind) {
    case Source::log:
      return std::make_unique<KvmDirtyLogSource>(guest.layout(), guest.vm_fd(), guest.slots());
    case Source::ring:
      return std::make_unique<KvmDirtyRingSource>(
          guest.layout(), guest.vm_fd(), std::vector{guest.vcpu_fd()}, kRingBytes, guest.slots());
    case Source::async:
      return make_source(Tracking::async, guest.layout(), guest.addresses());
    case Source::sync:
      break;
  }
  return make_source(Tracking::sync, guest.layout(), guest.addresses());
}

DirtyBitmap with(std::initializer_list<PageRun> runs) {
  DirtyBitmap bitmap(kKvmPages);
  for (const PageRun& each : runs) bitmap.set(each);
  return bitmap;
}

DirtyBitmap collected(DirtySource& source) {
  DirtyBitmap dirty(kKvmPages);
  const auto done = source.collect_into(dirty);
  EXPECT_TRUE(done) << done.error().message;
  return dirty;
}

class KvmDirtySourceTest : public testing::TestWithParam<Source> {
 protected:
  void start_and_collect_all() {
    const auto started = source_->start();
    ASSERT_TRUE(started) << started.error().message;
    EXPECT_EQ(collected(*source_).count(), kKvmPages);
  }

  KvmGuest guest_{GetParam() == Source::ring ? kRingBytes : 0};
  std::unique_ptr<DirtySource> source_ = source_of(GetParam(), guest_);
};

std::string name_of_source(const testing::TestParamInfo<Source>& info) {
  switch (info.param) {
    case Source::log:
      return "DirtyLog";
    case Source::ring:
      return "DirtyRing";
    case Source::async:
      return "AsyncWriteProtection";
    case Source::sync:
      break;
  }
  return "SyncWriteProtection";
}
INSTANTIATE_TEST_SUITE_P(All, KvmDirtySourceTest,
                         testing::Values(Source::log, Source::ring, Source::async, Source::sync),
                         name_of_source);

TEST_P(KvmDirtySourceTest, WhatTheGuestWritesIsSeenOnceInEverySlot) {
  guest_.write(run(kRam, 100), std::byte{1});
  start_and_collect_all();
  guest_.write(run(kRam, 3), kKvmNew);
  guest_.write(run(kRam + 99, 1), kKvmNew);  // the last page of slot 1
  guest_.write(run(kRam + 100, 70),
               kKvmNew);  // the first ones of slot 2, on from the middle of a word
  guest_.write(run(kBios + 69, 1), kKvmNew);  // the last page of all
  EXPECT_EQ(guest_.page(kRam + 120)[0], kKvmNew);
  EXPECT_EQ(collected(*source_), with({run(kRam, 3), run(kRam + 99, 71), run(kBios + 69, 1)}));
  EXPECT_EQ(collected(*source_), with({}));
}

TEST_P(KvmDirtySourceTest, WhatTheGuestWritesAgainIsSeenAgain) {
  start_and_collect_all();
  for (int round = 0; round < 3; ++round) {
    guest_.write(run(kRam + 5, 200 - 105), static_cast<std::byte>(round));
    EXPECT_EQ(collected(*source_), with({run(kRam + 5, 95)}));
  }
  EXPECT_EQ(collected(*source_), with({}));
}

TEST_P(KvmDirtySourceTest, StartedAgainItGoesOn) {
  start_and_collect_all();
  guest_.write(run(kRam, 33), kKvmNew);
  ASSERT_TRUE(source_->stop());
  guest_.write(run(kRam + 40, 10), kKvmNew);
  start_and_collect_all();
  guest_.write(run(kRam + 20, 1), kKvmNew);
  EXPECT_EQ(collected(*source_), with({run(kRam + 20, 1)}));
}

TEST_P(KvmDirtySourceTest, AnotherSourceGoesOnWhereTheFirstStopped) {
  start_and_collect_all();
  guest_.write(run(kRam, 33), kKvmNew);
  source_.reset();
  source_ = source_of(GetParam(), guest_);
  start_and_collect_all();
  guest_.write(run(kRam + 20, 4), kKvmNew);
  EXPECT_EQ(collected(*source_), with({run(kRam + 20, 4)}));
}

// A device of the VMM's writes through the VMM's mapping. Page tables show that; KVM's logs do not: D2.
TEST_P(KvmDirtySourceTest, WhatTheVmmWritesIsInNoLogOfKvm) {
  guest_.write(run(kRam, 100), std::byte{1});
  start_and_collect_all();
  *static_cast<volatile std::byte*>(guest_.page(kRam + 7)) = kKvmNew;
  const bool by_itself = GetParam() == Source::async || GetParam() == Source::sync;
  EXPECT_EQ(collected(*source_), by_itself ? with({run(kRam + 7, 1)}) : with({}));
}

TEST_P(KvmDirtySourceTest, WhatTheVmmWritesAndReportsIsSeen) {
  guest_.write(run(kRam, 100), std::byte{1});
  start_and_collect_all();
  *static_cast<volatile std::byte*>(guest_.page(kRam + 7)) = kKvmNew;
  source_->mark_dirty(run(kRam + 7, 1));
  EXPECT_EQ(collected(*source_), with({run(kRam + 7, 1)}));
  EXPECT_EQ(collected(*source_), with({}));
}

TEST_P(KvmDirtySourceTest, APageThatWasDroppedAndReportedIsTrackedOn) {
  guest_.write(run(kRam, 100), std::byte{1});
  start_and_collect_all();
  ASSERT_EQ(::madvise(guest_.page(kRam + 8), kPageSizeBytes, MADV_DONTNEED), 0);
  source_->discard(run(kRam + 8, 1));
  EXPECT_EQ(collected(*source_), with({run(kRam + 8, 1)}));
  guest_.write(run(kRam + 8, 1), kKvmNew);
  EXPECT_EQ(collected(*source_), with({run(kRam + 8, 1)}));
}

// The guest runs while collections go on; a copy that follows them is equal to its memory in the end.
TEST_P(KvmDirtySourceTest, NoWriteOfARunningGuestIsLost) {
  start_and_collect_all();
  std::vector<std::byte> copy(kKvmPages);
  std::atomic<bool> done = false;
  std::thread vcpu([&] {
    for (unsigned round = 1; round <= 60; ++round) {
      guest_.write(run(kRam + round % 7, 90), static_cast<std::byte>(round),
                   [&] { EXPECT_TRUE(static_cast<KvmDirtyRingSource&>(*source_).empty_rings()); });
      guest_.write(run(kBios + round % 11, 50), static_cast<std::byte>(round),
                   [&] { EXPECT_TRUE(static_cast<KvmDirtyRingSource&>(*source_).empty_rings()); });
    }
    done = true;
  });
  bool last = false;
  do {
    last = done;
    const DirtyBitmap dirty = collected(*source_);
    for (std::uint64_t page = kRam; page < kKvmPages; ++page) {
      if (dirty.is_set(PageIndex{page}))
        copy[page] = *static_cast<const volatile std::byte*>(guest_.page(page));
    }
  } while (!last);
  vcpu.join();
  for (std::uint64_t page = kRam; page < kKvmPages; ++page) {
    EXPECT_EQ(copy[page], *guest_.page(page)) << page;
  }
}

// --- only KVM's ---

TEST(KvmDirtyLogSource, SlotsThatLeaveAPageOutAreRefused) {
  const KvmGuest guest;
  std::vector<KvmMemorySlot> slots = guest.slots();
  slots.erase(slots.begin() + 2);
  KvmDirtyLogSource source(guest.layout(), guest.vm_fd(), slots);
  const auto started = source.start();
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, Errc::invalid);
  EXPECT_THAT(started.error().message, HasSubstr("do not cover page 116"));
}

TEST(KvmDirtyLogSource, ASlotThatKvmDoesNotKnowIsAnErrorOfTheVmm) {
  const KvmGuest guest;
  std::vector<KvmMemorySlot> slots = guest.slots();
  slots[3].userspace += 1;
  KvmDirtyLogSource source(guest.layout(), guest.vm_fd(), slots);
  const auto started = source.start();
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, Errc::vmm) << started.error().message;
}

constexpr std::uint64_t kSmallRingBytes = 4 * kPageSizeBytes;  // 1,024 entries
constexpr PageRun kMany = {.first = PageIndex{kRam + 100}, .pages = 1'900};

// 16 pages at a time, so that any KVM looks at its limit in time.
TEST(KvmDirtyRingSource, AFullRingStopsTheVcpuUntilItIsEmptied) {
  KvmGuest guest(kSmallRingBytes);
  KvmDirtyRingSource source(guest.layout(), guest.vm_fd(), {guest.vcpu_fd()}, kSmallRingBytes,
                            guest.slots());
  const auto started = source.start();
  ASSERT_TRUE(started) << started.error().message;
  collected(source);
  int full = 0;
  for (int round = 0; round < 3; ++round) {
    for (std::uint64_t done = 0; done < kMany.pages; done += 16) {
      guest.write({kMany.first + done, std::min<std::uint64_t>(kMany.pages - done, 16)}, kKvmNew,
                  [&] {
                    ASSERT_LT(++full, 1'000) << "the ring does not become empty";
                    const auto emptied = source.empty_rings();
                    ASSERT_TRUE(emptied) << emptied.error().message;
                  });
    }
    EXPECT_EQ(collected(source), with({kMany}));
  }
  EXPECT_GT(full, 0);
}

// In one go, a KVM that emulates the guest's stores may fill the ring to its last entry and over it. That is an error, or else
// every page is reported: never an answer with holes.
TEST(KvmDirtyRingSource, ARingThatRunsOverIsNeverAnAnswerWithHoles) {
  KvmGuest guest(kSmallRingBytes);
  KvmDirtyRingSource source(guest.layout(), guest.vm_fd(), {guest.vcpu_fd()}, kSmallRingBytes,
                            guest.slots());
  ASSERT_TRUE(source.start());
  collected(source);
  bool is_error = false;
  int full = 0;
  guest.write(kMany, kKvmNew, [&] {
    ASSERT_LT(++full, 1'000) << "the vCPU does not go on";
    const auto emptied = source.empty_rings();
    if (emptied) return;
    is_error = true;
    EXPECT_EQ(emptied.error().code, Errc::vmm);
    EXPECT_THAT(emptied.error().message, HasSubstr("full to the last"));
    EXPECT_FALSE(source.stop());
  });
  if (!is_error) {
    EXPECT_EQ(collected(source), with({kMany}));
  }
}

TEST(KvmDirtyRingSource, RingsThatWereNotEnabledAreAnErrorOfTheVmm) {
  const KvmGuest guest;
  KvmDirtyRingSource source(guest.layout(), guest.vm_fd(), {guest.vcpu_fd()}, kRingBytes,
                            guest.slots());
  const auto started = source.start();
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, Errc::vmm) << started.error().message;
}

TEST(KvmDirtyRingSource, RingsAreRefusedWhereVcpusAreAlready) {
  const KvmGuest guest;
  const auto enabled = enable_dirty_rings(guest.vm_fd(), kRingBytes);
  ASSERT_FALSE(enabled);
  EXPECT_EQ(enabled.error().code, Errc::vmm) << enabled.error().message;
}

TEST(KvmDirtyRingSource, RingsThatAreTooLargeAreUnsupported) {
  const KvmGuest guest;
  const auto enabled = enable_dirty_rings(guest.vm_fd(), std::uint64_t{1} << 40);
  ASSERT_FALSE(enabled);
  EXPECT_EQ(enabled.error().code, Errc::unsupported) << enabled.error().message;
}

}  // namespace
}  // namespace pageferry
