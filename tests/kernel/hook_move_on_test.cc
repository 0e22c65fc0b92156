// A guest that is still being restored, as the next mover sees it: through the real library, its socket and the real kernel, for memory with and
// without a file, and for both ways of write protection. The test is the pager of the restore and the mover, and the guest.
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <poll.h>

#include <map>

#include "fakes/hook_vmm.h"
#include "fakes/page_content.h"
#include "pager/dirty_bitmap.h"
#include "pager/userfault_outlet.h"

namespace pageferry {
namespace {

using namespace testing_support;
using Role = HookClient::Role;

void move_on_ok(const Result<void>& result) {
  EXPECT_TRUE(result) << result.error().message;
}
void move_on_refused(const Result<void>& result, Errc code, const std::string& words) {
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, code) << result.error().message;
  EXPECT_NE(result.error().message.find(words), std::string::npos) << result.error().message;
}

struct MoveOnCase {
  Backing backing;
  pageferry_dirty_source source;
};

class HookMoveOnTest : public testing::TestWithParam<MoveOnCase> {
 protected:
  // An incoming VMM whose guest runs; all of its pages are missing.
  HookMoveOnTest() : vmm_(GetParam().backing) {
    vmm_.config().incoming = 1;
    vmm_.config().dirty_source = GetParam().source;
    vmm_.start_well();
    restorer_ = vmm_.connect(Role::restorer);
    auto userfault = restorer_->take_userfault(vmm_.soon());
    EXPECT_TRUE(userfault) << userfault.error().message;
    std::vector<std::uint64_t> addresses;
    std::vector<Placing> placing;
    for (const HookSlot& slot : restorer_->vm().slots) {
      addresses.push_back(slot.host_address);
      placing.push_back(slot.memory.valid() ? Placing::write_protected_with_zeros
                                            : Placing::write_protected);
    }
    EXPECT_EQ(restorer_->vm().placing, hook_protocol::PagePlacing::write_protected);
    outlet_.emplace(restorer_->vm().layout, addresses);
    outlet_->place_as(placing);
    move_on_ok(outlet_->open(std::move(*userfault), std::nullopt));
    move_on_ok(restorer_->load_state({}, "0123abcd", vmm_.soon()));
    move_on_ok(restorer_->resume(1, vmm_.soon()));
    mover_ = vmm_.connect(Role::mover);
  }
  ~HookMoveOnTest() override {
    restorer_.reset();
    mover_.reset();
    if (vmm_.stop() == -EBUSY) vmm_.forget();
  }

  void place(std::uint64_t page) {
    const auto content = content_of(page, 1);
    const auto placed =
        outlet_->put_pages(PageChannel::background, {PageIndex{page}, 1}, std::span(content));
    ASSERT_TRUE(placed) << placed.error().message;
    EXPECT_EQ(*placed, 1U);
  }
  void place_zeros(std::uint64_t page) {
    ASSERT_TRUE(outlet_->put_zeros(PageChannel::background, {PageIndex{page}, 1}));
  }
  void place_all_but(const std::vector<std::uint64_t>& there) {
    for (std::uint64_t page = 0; page < HookVmm::kPages; ++page) {
      if (std::find(there.begin(), there.end(), page) == there.end()) place(page);
    }
  }
  // The guest writes; whoever reads the userfaultfd answers if the kernel does not.
  void write(std::uint64_t page) {
    std::atomic<bool> written{false};
    std::jthread guest([&] {
      vmm_.write(page, std::byte{0xee});
      written = true;
    });
    while (!written) {
      pollfd entry{.fd = outlet_->fd(), .events = POLLIN, .revents = 0};
      ::poll(&entry, 1, 1);
      std::vector<PageRun> faults;
      move_on_ok(outlet_->read_faults(faults));
      for (const PageRun& fault : faults) place(raw(fault.first));
    }
  }
  std::vector<std::uint64_t> collected() {
    DirtyBitmap dirty(HookVmm::kPages);
    move_on_ok(mover_->collect_into(dirty, vmm_.soon()));
    std::vector<std::uint64_t> pages;
    for (std::uint64_t page = 0; page < HookVmm::kPages; ++page) {
      if (dirty.is_set(PageIndex{page})) pages.push_back(page);
    }
    return pages;
  }
  void track(const std::string& since = "") {
    move_on_ok(mover_->start_tracking(vmm_.soon(), since));
  }
  using Pages = std::vector<std::uint64_t>;

  HookVmm vmm_;
  std::unique_ptr<HookClient> restorer_;
  std::unique_ptr<HookClient> mover_;
  std::optional<UserfaultOutlet> outlet_;
};

TEST_P(HookMoveOnTest, NoPageThatIsMissingIsNamed) {
  track();
  EXPECT_EQ(collected(), Pages());
  place(3);
  place(100);
  EXPECT_EQ(collected(), (Pages{3, 100}));
  EXPECT_EQ(collected(), Pages());
}

TEST_P(HookMoveOnTest, EveryPageIsNamedOnceItIsThere) {
  place(7);
  track();
  EXPECT_EQ(collected(), Pages{7});
  place_all_but({7});
  move_on_ok(restorer_->resident(vmm_.soon()));
  EXPECT_EQ(collected().size(), HookVmm::kPages - 1);
  EXPECT_EQ(collected(), Pages());
}

TEST_P(HookMoveOnTest, AWriteAfterThePageWasNamedIsNamedAgain) {
  track();
  place(3);
  EXPECT_EQ(collected(), Pages{3});
  write(3);
  EXPECT_EQ(collected(), Pages{3});
  EXPECT_EQ(collected(), Pages());
  write(3);
  EXPECT_EQ(collected(), Pages{3});
}

TEST_P(HookMoveOnTest, SinceTheImageOnlyWrittenPagesAreNamed) {
  place(3);
  place(4);
  place(100);
  write(4);
  write(9);  // it was missing
  EXPECT_EQ(mover_->vm().tracked_since_attempt, "0123abcd");
  track("0123abcd");
  EXPECT_EQ(collected(), (Pages{4, 9}));
  place_all_but({3, 4, 9, 100});
  write(50);
  move_on_ok(restorer_->resident(vmm_.soon()));
  EXPECT_EQ(collected(), Pages{50});
}

TEST_P(HookMoveOnTest, AnUnfinishedMoveLosesNothingOfWhatWasWrittenSinceTheImage) {
  place(3);
  write(3);
  track("0123abcd");
  EXPECT_EQ(collected(), Pages{3});
  write(5);
  EXPECT_EQ(collected(), Pages{5});
  move_on_ok(mover_->stop_tracking(vmm_.soon()));
  write(6);
  track("0123abcd");
  EXPECT_EQ(collected(), (Pages{3, 5, 6}));
}

TEST_P(HookMoveOnTest, WhatWasGivenBackCountsAsWrittenSinceTheImage) {
  place(3);
  EXPECT_EQ(pageferry_hook_discard(vmm_.hook(), bytes_of_pages(3), 2 * kPageSizeBytes), 0);
  track("0123abcd");
  EXPECT_EQ(collected(), (Pages{3, 4}));
  EXPECT_EQ(*vmm_.page(3), std::byte{0});
}

TEST_P(HookMoveOnTest, ZerosOfAFileAreProtectedAndThoseOfAnonymousMemoryCountAsWritten) {
  place_zeros(3);
  track("0123abcd");
  EXPECT_EQ(collected(), GetParam().backing == Backing::memfd ? Pages() : Pages{3});
  write(3);
  EXPECT_EQ(collected(), Pages{3});
}

TEST_P(HookMoveOnTest, ZerosArePlacedAfterACollection) {
  track();
  collected();
  place_zeros(3);
  EXPECT_EQ(collected(), Pages{3});
  place_all_but({3});
  move_on_ok(restorer_->resident(vmm_.soon()));
}

TEST_P(HookMoveOnTest, AnotherAttemptIsRefused) {
  move_on_refused(mover_->start_tracking(vmm_.soon(), "0123abce"), Errc::not_found, "0123abce");
  track();
}

TEST_P(HookMoveOnTest, TheGuestIsNotPausedWhilePagesAreMissing) {
  track();
  move_on_refused(mover_->pause(vmm_.soon()), Errc::vmm, "missing");
  place_all_but({5});
  collected();
  move_on_refused(restorer_->resident(vmm_.soon()), Errc::vmm, "missing");
  move_on_refused(mover_->pause(vmm_.soon()), Errc::vmm, "missing");
  place(5);
  move_on_ok(restorer_->resident(vmm_.soon()));
  move_on_ok(mover_->pause(vmm_.soon()));
}

TEST_P(HookMoveOnTest, ASecondMoverAndASecondRestorerAreRefused) {
  track();
  for (const Role role : {Role::mover, Role::restorer}) {
    const auto second = HookClient::connect(vmm_.path(), role, vmm_.soon());
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, Errc::busy);
  }
}

TEST_P(HookMoveOnTest, AHoleAfterTheRestoreReadsAsZerosAndIsWritten) {
  place_all_but({});
  move_on_ok(restorer_->resident(vmm_.soon()));
  track();
  collected();
  if (GetParam().backing == Backing::memfd) {
    ASSERT_EQ(::madvise(vmm_.page(3), kPageSizeBytes, MADV_REMOVE), 0);
  } else {
    ASSERT_EQ(::madvise(vmm_.page(3), kPageSizeBytes, MADV_DONTNEED), 0);
  }
  EXPECT_EQ(pageferry_hook_discard(vmm_.hook(), bytes_of_pages(3), kPageSizeBytes), 0);
  EXPECT_EQ(collected(), Pages{3});
  EXPECT_EQ(Toucher(vmm_.page(3)).wait(), std::byte{0});
  vmm_.write(3, std::byte{9});
  EXPECT_EQ(collected(), Pages{3});
  EXPECT_EQ(*vmm_.page(3), std::byte{9});
}

TEST_P(HookMoveOnTest, WritesAfterTheRestoreAreNamed) {
  place_all_but({});
  move_on_ok(restorer_->resident(vmm_.soon()));
  track();
  EXPECT_EQ(collected().size(), HookVmm::kPages);
  vmm_.write(8, std::byte{1});
  vmm_.write(101, std::byte{1});
  EXPECT_EQ(collected(), (Pages{8, 101}));
}

TEST_P(HookMoveOnTest, TheAccountOfTheImageGoesOnWhereItCostsNothing) {
  place_all_but({});
  write(4);
  move_on_ok(restorer_->resident(vmm_.soon()));
  vmm_.write(8, std::byte{1});
  move_on_ok(mover_->refresh(vmm_.soon()));
  if (GetParam().source == PAGEFERRY_DIRTY_WP_SYNC) {
    EXPECT_EQ(mover_->vm().tracked_since_attempt, "");
    return;
  }
  track("0123abcd");
  EXPECT_EQ(collected(), (Pages{4, 8}));
}

// Each page is written by a thread of the guest while pages come; at the end a copy that was made from what collections named is the
// guest's memory.
TEST_P(HookMoveOnTest, NoPageIsLostWhileTheGuestWritesAndPagesCome) {
  track();
  std::map<std::uint64_t, std::byte> copy;
  const auto take = [&] {
    for (const std::uint64_t page : collected()) copy[page] = *vmm_.page(page);
  };
  std::uint64_t random = 1;
  for (std::uint64_t page = 0; page < HookVmm::kPages; ++page) {
    random = random * 6364136223846793005U + 1442695040888963407U;
    write((random >> 33) % HookVmm::kPages);
    if (page % 5 == 0) take();
    place(page);
  }
  move_on_ok(restorer_->resident(vmm_.soon()));
  take();
  ASSERT_EQ(copy.size(), HookVmm::kPages);
  for (const auto& [page, first] : copy) EXPECT_EQ(first, *vmm_.page(page)) << page;
}

INSTANTIATE_TEST_SUITE_P(Memory, HookMoveOnTest,
                         testing::Values(MoveOnCase{Backing::anonymous, PAGEFERRY_DIRTY_WP_ASYNC},
                                         MoveOnCase{Backing::memfd, PAGEFERRY_DIRTY_WP_ASYNC},
                                         MoveOnCase{Backing::anonymous, PAGEFERRY_DIRTY_WP_SYNC},
                                         MoveOnCase{Backing::memfd, PAGEFERRY_DIRTY_WP_SYNC}),
                         [](const auto& each) {
                           const std::string memory =
                               each.param.backing == Backing::memfd ? "Memfd" : "Anonymous";
                           return memory +
                                  (each.param.source == PAGEFERRY_DIRTY_WP_SYNC ? "Sync" : "Async");
                         });

}  // namespace
}  // namespace pageferry
