// HookCapture over a fake VMM: every page arrives as it was when the guest was stopped, holes stay holes, and the commit decides who may
// run the guest.
#include "vmstate/hook_capture.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "fakes/fake_hook_client.h"
#include "fakes/memory_page_sink.h"
#include "vmstate/hook_state.h"

namespace pageferry {
namespace {

constexpr std::uint64_t kCapturedPages = 64;

class Observer final : public CaptureObserver {
 public:
  Verdict on_progress(const Progress&) override { return verdict; }
  bool may_switch() override { return ++asked > refusals; }
  Verdict on_not_converging(const Progress&) override {
    ++not_converging;
    return verdict;
  }

  Verdict verdict = Verdict::go_on;
  int refusals = 0;
  int asked = 0;
  int not_converging = 0;
};

class HookCaptureTest : public testing::Test {
 protected:
  HookCaptureTest() {
    auto made = HookMemory::make(client_.vm());
    PF_CHECK(made.has_value());
    memory_ = std::move(*made);
  }
  HookCapture& capture(CaptureOptions options = {}) {
    capture_.emplace(client_, "/nonexistent/hook.sock", *memory_, sink_, observer_, options);
    return *capture_;
  }
  void run_to_commit(HookCapture& capture) {
    ASSERT_TRUE(capture.start());
    ASSERT_TRUE(capture.run_brownout());
    ASSERT_TRUE(capture.run_blackout());
  }

  fakes::FakeHookClient client_{kCapturedPages};
  fakes::MemoryPageSink sink_;
  Observer observer_;
  std::unique_ptr<HookMemory> memory_;
  std::optional<HookCapture> capture_;
};

TEST_F(HookCaptureTest, EveryPageArrivesAndUntouchedOnesAsZeros) {
  client_.write_page(3, std::byte{0x33});
  run_to_commit(capture());
  ASSERT_EQ(sink_.pages.size(), kCapturedPages);
  EXPECT_EQ(sink_.pages[3], std::vector<std::byte>(kPageSizeBytes, std::byte{0x33}));
  EXPECT_TRUE(sink_.pages[4].empty());
}

TEST_F(HookCaptureTest, ReadingLeavesHolesInTheGuestsMemoryFile) {
  client_.write_page(3, std::byte{0x33});
  run_to_commit(capture());
  struct stat status {};
  ASSERT_EQ(::fstat(client_.vm().slots[0].memory.get(), &status), 0);
  EXPECT_EQ(static_cast<std::uint64_t>(status.st_blocks) * 512, kPageSizeBytes);
}

TEST_F(HookCaptureTest, APageThatIsWrittenDuringAPassArrivesAsItIsAtTheEnd) {
  int collections = 0;
  client_.on_collect = [&] {
    if (++collections == 2) client_.write_page(5, std::byte{0x55});
  };
  client_.write_page(5, std::byte{0x11});
  run_to_commit(capture());
  EXPECT_EQ(sink_.pages[5], std::vector<std::byte>(kPageSizeBytes, std::byte{0x55}));
}

TEST_F(HookCaptureTest, AHoleThatIsFilledLaterIsLookedUpAgain) {
  int collections = 0;
  client_.on_collect = [&] {
    if (++collections == 2) client_.write_page(9, std::byte{0x99});
  };
  observer_.refusals = 2;
  run_to_commit(capture());
  EXPECT_EQ(sink_.pages[9], std::vector<std::byte>(kPageSizeBytes, std::byte{0x99}));
}

TEST_F(HookCaptureTest, TheGuestRunsUntilTheObserverPermitsTheSwitch) {
  observer_.refusals = 3;
  HookCapture& made = capture();
  ASSERT_TRUE(made.start());
  ASSERT_TRUE(made.run_brownout());
  EXPECT_EQ(observer_.asked, 4);
  EXPECT_EQ(client_.vm().state, HookState::paused);
}

TEST_F(HookCaptureTest, WithABaseTheFirstPassHasOnlyWhatWasWrittenSince) {
  client_.restored_from("0123abcd");
  client_.write_page(3, std::byte{0x33});
  CaptureOptions options;
  options.base_attempt = "attempt.4.0123abcd";
  options.base_layout = client_.vm().layout;
  HookCapture& made = capture(options);
  run_to_commit(made);
  EXPECT_TRUE(made.base_in_use());
  EXPECT_EQ(client_.tracked_since, "0123abcd");
  ASSERT_EQ(sink_.pages.size(), 1U);
  EXPECT_TRUE(sink_.pages.contains(3));
}

TEST_F(HookCaptureTest, ABaseThatTheHookDoesNotKnowIsNotUsed) {
  client_.restored_from("0123abcd");
  CaptureOptions options;
  options.base_attempt = "attempt.4.4444abcd";
  options.base_layout = client_.vm().layout;
  HookCapture& made = capture(options);
  run_to_commit(made);
  EXPECT_FALSE(made.base_in_use());
  EXPECT_EQ(sink_.pages.size(), kCapturedPages);
}

TEST_F(HookCaptureTest, ABaseOfMemoryWithOtherBackingPagesIsNotUsed) {
  client_.restored_from("0123abcd");
  std::vector<RamBlock> blocks = client_.vm().layout.blocks();
  blocks.front().backing_page_bytes = std::uint64_t{64} << 10;
  CaptureOptions options;
  options.base_attempt = "0123abcd";
  options.base_layout = MemoryLayout::make(blocks).value();
  HookCapture& made = capture(options);
  run_to_commit(made);
  EXPECT_FALSE(made.base_in_use());
  EXPECT_EQ(sink_.pages.size(), kCapturedPages);
}

TEST_F(HookCaptureTest, ABaseThatTheHookHasGivenUpJustNowIsNotUsed) {
  client_.restored_from("0123abcd");
  client_.refuses_base = true;
  CaptureOptions options;
  options.base_attempt = "0123abcd";
  options.base_layout = client_.vm().layout;
  HookCapture& made = capture(options);
  run_to_commit(made);
  EXPECT_FALSE(made.base_in_use());
  EXPECT_EQ(sink_.pages.size(), kCapturedPages);
}

TEST_F(HookCaptureTest, TheGuestIsNotStoppedWhilePagesOfItAreMissing) {
  int looks = 0;
  client_.on_refresh = [&](HookVm& vm) {
    vm.state = ++looks < 4 ? HookState::restoring : HookState::moving;
  };
  CaptureOptions options;
  options.passes_max = 1;  // those that wait do not count
  HookCapture& made = capture(options);
  ASSERT_TRUE(made.start());
  ASSERT_TRUE(made.run_brownout());
  EXPECT_EQ(looks, 4);
  EXPECT_EQ(observer_.asked, 1);
  EXPECT_EQ(observer_.not_converging, 0);
}

TEST_F(HookCaptureTest, AForcedSwitchOfAGuestThatMissesPagesEndsTheMove) {
  client_.on_refresh = [](HookVm& vm) { vm.state = HookState::restoring; };
  observer_.verdict = CaptureObserver::Verdict::switch_now;
  HookCapture& made = capture();
  ASSERT_TRUE(made.start());
  const auto ended = made.run_brownout();
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().code, Errc::timeout);
  EXPECT_NE(client_.vm().state, HookState::paused);
}

TEST_F(HookCaptureTest, TheHookIsToldTheBlackoutLimit) {
  CaptureOptions options;
  options.blackout_limit = Milliseconds(1234);
  run_to_commit(capture(options));
  EXPECT_EQ(client_.asked_limit, Milliseconds(1234));
}

TEST_F(HookCaptureTest, TheStateFileIsOfThisMachine) {
  HookCapture& made = capture();
  EXPECT_TRUE(made.encode_state().empty());
  run_to_commit(made);
  const auto state = decode_hook_state(made.encode_state());
  ASSERT_TRUE(state) << state.error().message;
  EXPECT_EQ(state->machine, "fake machine");
  EXPECT_EQ(state->state.size(), 7U);
}

TEST_F(HookCaptureTest, AfterTheCommitNothingIsGivenUp) {
  CaptureOptions options;
  options.epoch = 4;
  HookCapture& made = capture(options);
  run_to_commit(made);
  ASSERT_TRUE(made.commit_source());
  EXPECT_TRUE(made.shut_was_sent());
  EXPECT_FALSE(made.request_stop());
  EXPECT_EQ(made.abort().error().code, Errc::invalid);
  EXPECT_EQ(client_.vm().state, HookState::committed);
  EXPECT_EQ(client_.vm().epoch, 4U);
}

TEST_F(HookCaptureTest, WhoGivesUpFirstCommitsNothing) {
  HookCapture& made = capture();
  run_to_commit(made);
  EXPECT_TRUE(made.request_stop());
  EXPECT_EQ(made.commit_source().error().code, Errc::canceled);
  EXPECT_FALSE(made.shut_was_sent());
  EXPECT_EQ(client_.vm().state, HookState::running);
}

TEST_F(HookCaptureTest, ARefusedCommitCommittedNothing) {
  HookCapture& made = capture();
  run_to_commit(made);
  client_.commit_error = Error{Errc::vmm, 0, "the limit has passed"};
  EXPECT_FALSE(made.commit_source());
  EXPECT_FALSE(made.shut_was_sent());
}

TEST_F(HookCaptureTest, ACommitWithoutAnAnswerMayHaveBeenOne) {
  HookCapture& made = capture();
  run_to_commit(made);
  client_.commit_error = Error{Errc::gone, 0, "the VMM closed"};
  EXPECT_FALSE(made.commit_source());
  EXPECT_TRUE(made.shut_was_sent());
}

TEST_F(HookCaptureTest, AnAbortOfTheObserverEndsTheBrownout) {
  observer_.verdict = CaptureObserver::Verdict::abort;
  HookCapture& made = capture();
  ASSERT_TRUE(made.start());
  EXPECT_EQ(made.run_brownout().error().code, Errc::canceled);
  EXPECT_NE(client_.vm().state, HookState::paused);
}

TEST_F(HookCaptureTest, AnErrorOfTheSinkEndsTheBrownoutWithTheGuestRunning) {
  sink_.refuse_pages({Errc::no_space, ENOSPC, "full"});
  client_.write_page(1, std::byte{1});
  HookCapture& made = capture();
  ASSERT_TRUE(made.start());
  EXPECT_EQ(made.run_brownout().error().code, Errc::no_space);
  EXPECT_EQ(client_.vm().state, HookState::running);
}

TEST_F(HookCaptureTest, AForcedSwitchStopsAGuestThatDoesNotConverge) {
  client_.on_collect = [&] {
    for (std::uint64_t page = 0; page < kCapturedPages; ++page)
      client_.write_page(page, std::byte{2});
  };
  observer_.verdict = CaptureObserver::Verdict::switch_now;
  CaptureOptions options;
  options.sink_bytes_per_s = [] { return std::uint64_t{1}; };
  run_to_commit(capture(options));
  EXPECT_EQ(client_.vm().state, HookState::paused);
}

}  // namespace
}  // namespace pageferry
