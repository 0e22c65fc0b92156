// The library and HookClient together: a whole move of a guest out of one VMM and into another, and what becomes of a guest whose pager
// goes away on each step. Each test uses the real library, its socket and the real kernel.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <future>

#include "fakes/expectations.h"
#include "fakes/hook_vmm.h"
#include "fakes/page_content.h"
#include "pager/dirty_bitmap.h"
#include "pager/userfault_outlet.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::ElementsAre;
using testing::HasSubstr;
using Role = HookClient::Role;

void expect_refused(const Result<void>& result, Errc code, const std::string& words) {
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, code) << result.error().message;
  EXPECT_THAT(result.error().message, HasSubstr(words));
}

class HookMoveTest : public testing::Test {
 protected:
  DirtyBitmap collected(HookClient& client) {
    DirtyBitmap dirty(HookVmm::kPages);
    expect_ok(client.collect_into(dirty, vmm_.soon()));
    return dirty;
  }
  // A mover whose guest is paused.
  std::unique_ptr<HookClient> paused() {
    auto mover = vmm_.connect(Role::mover);
    expect_ok(mover->pause(vmm_.soon()));
    return mover;
  }
  HookVmm vmm_;
};

TEST_F(HookMoveTest, ThePagerLearnsWhatTheVmmIs) {
  std::array<const char*, 3> command = {"vmm", "{socket}", nullptr};
  vmm_.config().incoming_command = command.data();
  vmm_.start_well();
  const auto mover = vmm_.connect(Role::mover);
  const HookVm& vm = mover->vm();
  EXPECT_EQ(vm.name, "demo");
  EXPECT_EQ(vm.machine, "test VMM 1");
  EXPECT_EQ(vm.state, HookState::moving);
  EXPECT_EQ(vm.pid, ::getpid());
  EXPECT_EQ(vm.layout.pages(), HookVmm::kPages);
  ASSERT_EQ(vm.slots.size(), 2U);
  EXPECT_EQ(vm.slots[1].guest_address, HookVmm::kBiosAddress);
  EXPECT_EQ(vm.slots[1].host_address, reinterpret_cast<std::uintptr_t>(vmm_.page(96)));
  EXPECT_TRUE(vm.slots[1].memory.valid());
  EXPECT_THAT(vm.incoming_command, ElementsAre("vmm", "{socket}"));
  EXPECT_EQ(vmm_.state(), PAGEFERRY_HOOK_MOVING);
}

TEST_F(HookMoveTest, WrittenPagesAreCollected) {
  vmm_.start_well();
  const auto mover = vmm_.connect(Role::mover);
  expect_ok(mover->start_tracking(vmm_.soon()));
  EXPECT_EQ(collected(*mover).count(), HookVmm::kPages);
  vmm_.write(5, std::byte{1});
  vmm_.write(100, std::byte{1});
  EXPECT_EQ(pageferry_hook_mark_dirty(vmm_.hook(), HookVmm::kBiosAddress + 4095, 2), 0);
  const DirtyBitmap dirty = collected(*mover);
  EXPECT_TRUE(dirty.is_set(PageIndex{5}) && dirty.is_set(PageIndex{100}));
  EXPECT_TRUE(dirty.is_set(PageIndex{96}) && dirty.is_set(PageIndex{97}));
  EXPECT_EQ(dirty.count(), 4U);
  expect_ok(mover->stop_tracking(vmm_.soon()));
}

TEST_F(HookMoveTest, TheVmmsOwnDirtyBitmapIsAskedWhereThereIsOne) {
  vmm_.callbacks().set_dirty_log = [](void*, int) { return 0; };
  vmm_.callbacks().fetch_dirty = [](void*, std::size_t slot, std::uint64_t* bitmap, std::size_t) {
    bitmap[0] |= slot == 0 ? 1U << 9 : 1U << 3;
    return 0;
  };
  vmm_.start_well();
  const auto mover = vmm_.connect(Role::mover);
  expect_ok(mover->start_tracking(vmm_.soon()));
  EXPECT_EQ(collected(*mover).count(), HookVmm::kPages);
  const DirtyBitmap dirty = collected(*mover);
  EXPECT_TRUE(dirty.is_set(PageIndex{9}) && dirty.is_set(PageIndex{HookVmm::kRamPages + 3}));
  EXPECT_EQ(dirty.count(), 2U);
}

TEST_F(HookMoveTest, WithoutAnAsynchronousKernelTheSynchronousSourceWorksTheSame) {
  vmm_.config().dirty_source = PAGEFERRY_DIRTY_WP_SYNC;
  vmm_.start_well();
  const auto mover = vmm_.connect(Role::mover);
  expect_ok(mover->start_tracking(vmm_.soon()));
  EXPECT_EQ(collected(*mover).count(), HookVmm::kPages);
  vmm_.write(5, std::byte{1});
  EXPECT_EQ(collected(*mover).count(), 1U);
}

TEST_F(HookMoveTest, AHoleThatIsReportedIsCollected) {
  vmm_.start_well();
  const auto mover = vmm_.connect(Role::mover);
  expect_ok(mover->start_tracking(vmm_.soon()));
  collected(*mover);
  EXPECT_EQ(pageferry_hook_discard(vmm_.hook(), 0, 3 * kPageSizeBytes), 0);
  EXPECT_EQ(collected(*mover).count(), 3U);
}

TEST_F(HookMoveTest, ARangeThatIsNotInsideTheSlotsIsRefused) {
  vmm_.start_well();
  constexpr std::uint64_t kEnd = bytes_of_pages(HookVmm::kRamPages);
  EXPECT_EQ(pageferry_hook_mark_dirty(vmm_.hook(), 0, 0), -EINVAL);
  EXPECT_EQ(pageferry_hook_mark_dirty(vmm_.hook(), kEnd - 1, 2), -EINVAL);
  EXPECT_EQ(pageferry_hook_mark_dirty(vmm_.hook(), kEnd - 1, 1), 0);
  EXPECT_EQ(pageferry_hook_mark_dirty(vmm_.hook(), ~std::uint64_t{0}, 2), -EINVAL);
  EXPECT_EQ(pageferry_hook_discard(vmm_.hook(), 1, kPageSizeBytes), -EINVAL);
}

TEST_F(HookMoveTest, AWholeMoveEndsInCommitted) {
  vmm_.start_well();
  const auto mover = vmm_.connect(Role::mover);
  expect_ok(mover->start_tracking(vmm_.soon()));
  collected(*mover);
  expect_ok(mover->pause(vmm_.soon()));
  EXPECT_FALSE(vmm_.runs());
  EXPECT_EQ(vmm_.state(), PAGEFERRY_HOOK_PAUSED);
  const auto state = mover->save_state(vmm_.soon());
  ASSERT_TRUE(state) << state.error().message;
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(state->data()), state->size()),
            "the devices");
  expect_ok(mover->commit(3, vmm_.soon()));
  EXPECT_EQ(vmm_.state(), PAGEFERRY_HOOK_COMMITTED);
  EXPECT_FALSE(mover->give_up());
  expect_ok(mover->end(vmm_.soon()));
  EXPECT_TRUE(vmm_.was_called("moved_away"));
  EXPECT_EQ(vmm_.state(), PAGEFERRY_HOOK_MOVED_AWAY);
  EXPECT_FALSE(vmm_.runs());
}

TEST_F(HookMoveTest, APagerThatGoesBeforeCommitLetsTheGuestRun) {
  vmm_.start_well();
  paused().reset();
  EXPECT_TRUE(vmm_.was_called("resume"));
  EXPECT_TRUE(vmm_.runs());
}

TEST_F(HookMoveTest, APagerThatGoesAfterCommitLeavesTheGuestStopped) {
  vmm_.start_well();
  auto mover = paused();
  expect_ok(mover->commit(0, vmm_.soon()));
  mover.reset();
  const auto next = vmm_.connect(Role::mover);
  EXPECT_EQ(next->vm().state, HookState::committed);
  expect_refused(next->resume(0, vmm_.soon()), Errc::vmm, "epoch 0 was committed");
  EXPECT_FALSE(vmm_.runs());
  expect_ok(next->resume(1, vmm_.soon()));
  EXPECT_TRUE(vmm_.runs());
  expect_ok(next->refresh(vmm_.soon()));
  EXPECT_EQ(next->vm().epoch, 1U);
  EXPECT_EQ(next->vm().state, HookState::moving);
}

TEST_F(HookMoveTest, GivingUpResumesTheGuestAndExcludesCommit) {
  vmm_.start_well();
  const auto mover = paused();
  EXPECT_TRUE(mover->give_up());
  expect_refused(mover->commit(0, vmm_.soon()), Errc::canceled, "given up");
  EXPECT_TRUE(vmm_.was_called("resume"));
}

class HookRestoreTest : public testing::TestWithParam<Backing> {
 protected:
  static std::vector<std::uint64_t> addresses(const HookVm& vm) {
    std::vector<std::uint64_t> all;
    for (const HookSlot& slot : vm.slots) all.push_back(slot.host_address);
    return all;
  }
};

TEST_P(HookRestoreTest, AGuestGoesFromOneVmmToAnother) {
  HookVmm source(GetParam());
  source.start_well();
  for (std::uint64_t i = 0; i < HookVmm::kPages; i += 3) {
    const auto content = content_of(i, 1);
    std::memcpy(source.page(i), content.data(), content.size());
  }
  auto mover = source.connect(Role::mover);
  expect_ok(mover->pause(source.soon()));
  const auto state = mover->save_state(source.soon());
  ASSERT_TRUE(state);
  expect_ok(mover->commit(0, source.soon()));

  HookVmm taker(GetParam());
  taker.config().incoming = 1;
  taker.device_state = "";
  taker.start_well();
  EXPECT_EQ(taker.state(), PAGEFERRY_HOOK_INCOMING);
  auto restorer = taker.connect(Role::restorer);
  expect_ok(restorer->vm().layout.check_same_blocks(mover->vm().layout));
  auto userfault = restorer->take_userfault(taker.soon());
  ASSERT_TRUE(userfault) << userfault.error().message;
  expect_refused(restorer->resume(1, taker.soon()), Errc::vmm, "no device state");
  expect_ok(restorer->load_state(*state, "attempt", taker.soon()));
  EXPECT_EQ(taker.device_state, "the devices");
  expect_ok(restorer->resume(1, taker.soon()));
  EXPECT_TRUE(taker.runs());
  EXPECT_EQ(taker.state(), PAGEFERRY_HOOK_RESTORING);
  EXPECT_EQ(taker.stop(), -EBUSY);
  expect_refused(restorer->resident(taker.soon()), Errc::vmm, "missing");

  UserfaultOutlet outlet(restorer->vm().layout, addresses(restorer->vm()));
  expect_ok(outlet.open(std::move(*userfault), std::nullopt));
  for (std::uint64_t i = 0; i < HookVmm::kPages; ++i) {
    const std::span bytes(source.page(i), kPageSizeBytes);
    ASSERT_TRUE(outlet.put_pages(PageChannel::background, {PageIndex{i}, 1}, bytes));
  }
  expect_ok(restorer->resident(taker.soon()));
  EXPECT_TRUE(taker.was_called("resident"));
  EXPECT_EQ(taker.state(), PAGEFERRY_HOOK_RUNNING);
  for (std::uint64_t i = 0; i < HookVmm::kPages; ++i) {
    EXPECT_EQ(std::memcmp(taker.page(i), source.page(i), kPageSizeBytes), 0) << "page " << i;
  }
  EXPECT_EQ(taker.stop(), 0);
}

INSTANTIATE_TEST_SUITE_P(Memory, HookRestoreTest,
                         testing::Values(Backing::anonymous, Backing::memfd), [](const auto& each) {
                           return each.param == Backing::anonymous ? "Anonymous" : "Memfd";
                         });

}  // namespace
}  // namespace pageferry
