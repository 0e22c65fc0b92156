// What becomes of the guest when something fails: callbacks, pagers that are killed or stopped in each state, limits that pass, pages that are
// given back while they are missing. The pager is a process of its own where it is killed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <future>

#include "fakes/expectations.h"
#include "fakes/hook_vmm.h"
#include "fakes/huge_pages.h"
#include "fakes/page_content.h"
#include "pager/userfault_outlet.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::HasSubstr;
using Role = HookClient::Role;

// A pager in a process of its own, which does what it is told and then waits to be killed. Forked from a process with threads: it uses what
// needs no lock of theirs (the allocator's are set right by the C library).
class PagerProcess {
 public:
  PagerProcess(const HookVmm& vmm, Role role, const std::function<Result<void>(HookClient&)>& act) {
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const UniqueFd read_end(ends[0]);
    UniqueFd write_end(ends[1]);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      auto client = HookClient::connect(vmm.path(), role, vmm.soon());
      const char done = client && act(**client) ? 'y' : 'n';
      static_cast<void>(!::write(write_end.get(), &done, 1));
      for (;;) ::pause();
    }
    write_end.reset();
    char done = 0;
    EXPECT_EQ(::read(read_end.get(), &done, 1), 1);
    EXPECT_EQ(done, 'y') << "the pager's process could not do its part";
  }
  ~PagerProcess() { kill(); }
  void kill() {
    if (pid_ < 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  void stop() const { ::kill(pid_, SIGSTOP); }

 private:
  pid_t pid_ = -1;
};

class HookFailureTest : public testing::Test {
 protected:
  HookVmm vmm_;
};

TEST_F(HookFailureTest, AMoverThatIsKilledWhileTheGuestRuns) {
  vmm_.start_well();
  PagerProcess pager(vmm_, Role::mover,
                     [this](HookClient& client) { return client.start_tracking(vmm_.soon()); });
  EXPECT_EQ(vmm_.state(), PAGEFERRY_HOOK_MOVING);
  pager.kill();
  const auto next = vmm_.connect(Role::mover);
  expect_ok(next->start_tracking(vmm_.soon()));
  EXPECT_TRUE(vmm_.runs());
}

TEST_F(HookFailureTest, AMoverThatIsKilledWhileTheGuestIsPaused) {
  vmm_.start_well();
  PagerProcess pager(vmm_, Role::mover, [this](HookClient& client) -> Result<void> {
    PF_TRY(client.start_tracking(vmm_.soon()));
    PF_TRY(client.pause(vmm_.soon()));
    PF_ASSIGN(const auto state, client.save_state(vmm_.soon()));
    return {};
  });
  EXPECT_FALSE(vmm_.runs());
  pager.kill();
  EXPECT_TRUE(vmm_.was_called("resume"));
  EXPECT_TRUE(vmm_.runs());
  const auto next = vmm_.connect(Role::mover);
  expect_ok(next->start_tracking(vmm_.soon()));
}

TEST_F(HookFailureTest, AMoverThatIsKilledAfterCommit) {
  vmm_.start_well();
  PagerProcess pager(vmm_, Role::mover, [this](HookClient& client) -> Result<void> {
    PF_TRY(client.pause(vmm_.soon()));
    return client.commit(1, vmm_.soon());
  });
  pager.kill();
  const auto next = vmm_.connect(Role::mover);
  EXPECT_EQ(next->vm().state, HookState::committed);
  EXPECT_EQ(next->vm().epoch, 1U);
  EXPECT_FALSE(vmm_.runs());
  EXPECT_THAT(vmm_.calls(), testing::Not(testing::Contains("resume")));
}

TEST_F(HookFailureTest, AMoverThatIsKilledWhileThePauseCallbackRuns) {
  std::promise<void> entered;
  std::promise<void> leave;
  vmm_.next("pause", [&] {
    entered.set_value();
    leave.get_future().wait();
    return 0;
  });
  vmm_.start_well();
  auto mover = vmm_.connect(Role::mover);
  std::jthread asking([&] { static_cast<void>(mover->pause(vmm_.soon())); });
  entered.get_future().wait();
  EXPECT_TRUE(mover->give_up());
  const auto observer = vmm_.connect(Role::observer);
  ASSERT_NE(observer, nullptr) << "a callback that blocks keeps nobody waiting";
  leave.set_value();
  EXPECT_TRUE(vmm_.was_called("resume"));
  EXPECT_TRUE(vmm_.runs());
}

TEST_F(HookFailureTest, AMoverThatIsStoppedIsOverruledByItsLimit) {
  vmm_.start_well();
  PagerProcess pager(vmm_, Role::mover, [this](HookClient& client) -> Result<void> {
    static_cast<void>(client.pause(vmm_.soon(), Milliseconds(20)));  // or it has passed already
    return {};
  });
  pager.stop();
  EXPECT_TRUE(vmm_.was_called("resume"));
  EXPECT_TRUE(vmm_.runs());
  const auto second = HookClient::connect(vmm_.path(), Role::mover, vmm_.soon());
  ASSERT_FALSE(second) << "the first is still connected";
  EXPECT_EQ(second.error().code, Errc::busy);
}

TEST_F(HookFailureTest, AMoverThatIsStoppedWithoutALimitKeepsThePause) {
  vmm_.start_well();
  PagerProcess pager(vmm_, Role::mover,
                     [this](HookClient& client) { return client.pause(vmm_.soon()); });
  pager.stop();
  const auto observer = vmm_.connect(Role::observer);
  EXPECT_EQ(observer->vm().state, HookState::paused);
  EXPECT_FALSE(vmm_.runs());
}

TEST_F(HookFailureTest, CommitAfterTheLimitIsRefusedAndTrackingGoesOn) {
  vmm_.start_well();
  const auto mover = vmm_.connect(Role::mover);
  expect_ok(mover->start_tracking(vmm_.soon()));
  // On a busy machine the limit passes while the guest is being paused, which is said then.
  static_cast<void>(mover->pause(vmm_.soon(), Milliseconds(1)));
  EXPECT_TRUE(vmm_.was_called("resume"));
  const auto committed = mover->commit(1, vmm_.soon());
  ASSERT_FALSE(committed);
  EXPECT_EQ(committed.error().code, Errc::vmm);
  DirtyBitmap dirty(HookVmm::kPages);
  expect_ok(mover->collect_into(dirty, vmm_.soon()));
  expect_ok(mover->pause(vmm_.soon()));
  expect_ok(mover->commit(1, vmm_.soon()));
}

TEST_F(HookFailureTest, CommitWithinTheLimitEndsIt) {
  vmm_.start_well();
  const auto mover = vmm_.connect(Role::mover);
  expect_ok(mover->pause(vmm_.soon(), Milliseconds(5000)));
  expect_ok(mover->commit(1, vmm_.soon()));
  expect_ok(mover->refresh(vmm_.soon()));
  EXPECT_EQ(mover->vm().state, HookState::committed);
}

TEST_F(HookFailureTest, APauseThatFailsLeavesTheGuestRunning) {
  vmm_.next("pause", [] { return -EIO; });
  vmm_.start_well();
  const auto mover = vmm_.connect(Role::mover);
  const auto paused = mover->pause(vmm_.soon());
  ASSERT_FALSE(paused);
  EXPECT_EQ(paused.error().code, Errc::vmm);
  EXPECT_THAT(paused.error().message, HasSubstr("the VMM's pause failed: Input/output error"));
  EXPECT_TRUE(vmm_.runs());
  expect_ok(mover->pause(vmm_.soon()));
}

TEST_F(HookFailureTest, ACallbackThatThrowsIsAnError) {
  vmm_.next("save_state", []() -> int { throw std::runtime_error("no devices"); });
  vmm_.start_well();
  const auto mover = vmm_.connect(Role::mover);
  expect_ok(mover->pause(vmm_.soon()));
  const auto state = mover->save_state(vmm_.soon());
  ASSERT_FALSE(state);
  EXPECT_THAT(state.error().message, HasSubstr("threw: no devices"));
}

TEST_F(HookFailureTest, AResumeThatFailsIsTriedAgain) {
  vmm_.next("resume", [] { return -EAGAIN; });
  vmm_.start_well();
  auto mover = vmm_.connect(Role::mover);
  expect_ok(mover->pause(vmm_.soon()));
  mover.reset();
  EXPECT_TRUE(vmm_.was_called("resume", 2));
  EXPECT_TRUE(vmm_.runs());
}

TEST_F(HookFailureTest, AResumeByTheOwnerThatFailsMayBeAskedAgain) {
  vmm_.next("resume", [] { return -EAGAIN; });
  vmm_.start_well();
  const auto mover = vmm_.connect(Role::mover);
  expect_ok(mover->pause(vmm_.soon()));
  expect_ok(mover->commit(1, vmm_.soon()));
  EXPECT_FALSE(mover->resume(2, vmm_.soon()));
  EXPECT_FALSE(vmm_.runs());
  expect_ok(mover->resume(2, vmm_.soon()));
  EXPECT_TRUE(vmm_.runs());
}

TEST_F(HookFailureTest, StoppingTheHookResumesAPausedGuest) {
  vmm_.start_well();
  const auto mover = vmm_.connect(Role::mover);
  expect_ok(mover->pause(vmm_.soon()));
  EXPECT_EQ(vmm_.stop(), 0);
  EXPECT_TRUE(vmm_.runs());
}

TEST_F(HookFailureTest, StoppingTheHookLeavesACommittedGuestStopped) {
  vmm_.start_well();
  const auto mover = vmm_.connect(Role::mover);
  expect_ok(mover->pause(vmm_.soon()));
  expect_ok(mover->commit(1, vmm_.soon()));
  EXPECT_EQ(vmm_.stop(), 0);
  EXPECT_FALSE(vmm_.runs());
}

TEST_F(HookFailureTest, StoppingFromACallbackIsRefused) {
  int stopped = 0;
  vmm_.next("pause", [&] {
    stopped = pageferry_hook_stop(vmm_.hook());
    return 0;
  });
  vmm_.start_well();
  const auto mover = vmm_.connect(Role::mover);
  expect_ok(mover->pause(vmm_.soon()));
  EXPECT_EQ(stopped, -EDEADLK);
}

TEST_F(HookFailureTest, ALoadThatFailsMayBeMadeAgainAndOneThatDidNotMayNot) {
  vmm_.config().incoming = 1;
  vmm_.next("load_state", [] { return -EINVAL; });
  vmm_.start_well();
  const auto restorer = vmm_.connect(Role::restorer);
  EXPECT_FALSE(restorer->load_state({}, "first", vmm_.soon()));
  expect_ok(restorer->load_state({}, "second", vmm_.soon()));
  expect_ok(restorer->refresh(vmm_.soon()));
  EXPECT_EQ(restorer->vm().attempt_id, "second");
  EXPECT_FALSE(restorer->load_state({}, "third", vmm_.soon()));
  vmm_.forget();
}

TEST_F(HookFailureTest, TheProgressOfAPagerIsSeenBesideItAndAfterIt) {
  vmm_.start_well();
  const auto observer = vmm_.connect(Role::observer);
  const auto none = observer->progress(vmm_.soon());
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, Errc::not_found);
  auto mover = vmm_.connect(Role::mover);
  auto writer = HookProgressWriter::make();
  ASSERT_TRUE(writer) << writer.error().message;
  expect_ok(mover->share_progress(*writer, vmm_.soon()));
  const HookProgress progress{.phase = HookPhase::brownout, .pages_done = 7, .pass = 2};
  writer->write(progress);
  const auto reader = observer->progress(vmm_.soon());
  ASSERT_TRUE(reader) << reader.error().message;
  EXPECT_EQ(*reader->read(), progress);
  mover.reset();
  const auto later = observer->progress(vmm_.soon());
  ASSERT_TRUE(later);
  EXPECT_EQ(later->read()->pages_done, 7U);
}

// A guest that waits for its pages.
class HookWaitingTest : public testing::TestWithParam<Backing> {
 protected:
  void SetUp() override {
    vmm_.config().incoming = 1;
    vmm_.start_well();
  }
  void TearDown() override { vmm_.forget(); }
  std::unique_ptr<UserfaultOutlet> outlet_of(HookClient& restorer) {
    std::vector<std::uint64_t> addresses;
    for (const HookSlot& slot : restorer.vm().slots) addresses.push_back(slot.host_address);
    auto outlet = std::make_unique<UserfaultOutlet>(restorer.vm().layout, addresses);
    auto userfault = restorer.take_userfault(vmm_.soon());
    EXPECT_TRUE(userfault) << userfault.error().message;
    expect_ok(outlet->open(std::move(*userfault), std::nullopt));
    return outlet;
  }
  static void put(UserfaultOutlet& outlet, std::uint64_t page) {
    EXPECT_TRUE(outlet.put_pages(PageChannel::urgent, {PageIndex{page}, 1}, content_of(page, 1)));
  }
  bool is_right(std::uint64_t page) const {
    return std::memcmp(vmm_.page(page), content_of(page, 1).data(), kPageSizeBytes) == 0;
  }
  HookVmm vmm_{GetParam()};
};

TEST_P(HookWaitingTest, ARestorerThatIsKilledLeavesTheGuestWaitingForTheNext) {
  Toucher guest(vmm_.page(40));
  PagerProcess pager(vmm_, Role::restorer, [this](HookClient& client) -> Result<void> {
    PF_TRY(client.load_state({}, "attempt", vmm_.soon()));
    PF_TRY(client.resume(1, vmm_.soon()));
    PF_ASSIGN(const UniqueFd userfault, client.take_userfault(vmm_.soon()));
    // It takes the guest's fault along when it is killed.
    uffd_msg message{};
    if (fault_comes(userfault.get()) &&
        ::read(userfault.get(), &message, sizeof message) == sizeof message) {
      return {};
    }
    return fail(Errc::timeout, "no fault came");
  });
  pager.kill();
  EXPECT_FALSE(guest.has_seen());
  const auto next = vmm_.connect(Role::restorer);
  EXPECT_EQ(next->vm().state, HookState::restoring);
  EXPECT_EQ(next->vm().attempt_id, "attempt");
  const auto outlet = outlet_of(*next);
  put(*outlet, 40);
  EXPECT_EQ(guest.wait(), content_of(40, 1).front());
  EXPECT_TRUE(is_right(40));
}

TEST_P(HookWaitingTest, ALoadThatWaitsForAPageDoesNotKeepANewRestorerOut) {
  std::promise<void> entered;
  vmm_.next("load_state", [&] {
    entered.set_value();
    return *static_cast<volatile std::byte*>(vmm_.page(3)) == std::byte{0xee} ? -EIO : 0;
  });
  auto first = vmm_.connect(Role::restorer);
  std::jthread loading([&] { static_cast<void>(first->load_state({}, "a", vmm_.soon())); });
  entered.get_future().wait();
  EXPECT_TRUE(first->give_up());
  loading.join();
  first.reset();
  const auto next = vmm_.connect(Role::restorer);
  ASSERT_NE(next, nullptr);
  put(*outlet_of(*next), 3);
  EXPECT_TRUE(vmm_.was_called("load_state"));
}

TEST_P(HookWaitingTest, APageThatWasGivenBackIsZeroWhateverIsBroughtLater) {
  const auto restorer = vmm_.connect(Role::restorer);
  const auto outlet = outlet_of(*restorer);
  EXPECT_EQ(pageferry_hook_discard(vmm_.hook(), bytes_of_pages(10), bytes_of_pages(5)), 0);
  for (std::uint64_t page = 9; page < 16; ++page) put(*outlet, page);
  EXPECT_TRUE(is_right(9) && is_right(15));
  for (std::uint64_t page = 10; page < 15; ++page) {
    EXPECT_TRUE(is_zero_page(PageBytes(vmm_.page(page), kPageSizeBytes))) << page;
  }
  DirtyBitmap removed(HookVmm::kPages);
  restorer->removed_into(removed);
  EXPECT_EQ(removed.count(), 5U);
  EXPECT_TRUE(removed.is_set(PageIndex{10}) && removed.is_set(PageIndex{14}));
}

TEST_P(HookWaitingTest, APageThatWasBroughtBetweenTheHoleAndItsReportIsZero) {
  const auto restorer = vmm_.connect(Role::restorer);
  const auto outlet = outlet_of(*restorer);
  put(*outlet, 20);
  EXPECT_EQ(pageferry_hook_discard(vmm_.hook(), bytes_of_pages(20), kPageSizeBytes), 0);
  EXPECT_TRUE(is_zero_page(PageBytes(vmm_.page(20), kPageSizeBytes)));
}

TEST_P(HookWaitingTest, OnePageThatIsMissingIsNotResident) {
  const auto restorer = vmm_.connect(Role::restorer);
  const auto outlet = outlet_of(*restorer);
  for (std::uint64_t page = 0; page < HookVmm::kPages; ++page) {
    if (page != 97) put(*outlet, page);
  }
  const auto early = restorer->resident(vmm_.soon());
  ASSERT_FALSE(early);
  EXPECT_THAT(early.error().message, HasSubstr("slot 'bios': the page at 0xc0001000 is missing"));
  EXPECT_EQ(
      pageferry_hook_discard(vmm_.hook(), HookVmm::kBiosAddress + kPageSizeBytes, kPageSizeBytes),
      0);
  expect_ok(restorer->resident(vmm_.soon()));
  EXPECT_EQ(vmm_.stop(), 0);
}

// The look for a page that is missing takes a second, unless the machine itself stood still for that long: then once more.
TEST_P(HookWaitingTest, WhileResidencyIsLookedAtTheNextRestorerIsNotGivenTheUserfault) {
  const auto observer = vmm_.connect(Role::observer);
  std::optional<Error> refusal;
  for (int attempt = 0; attempt < 10 && !refusal; ++attempt) {
    auto first = vmm_.connect(Role::restorer);
    ASSERT_NE(first, nullptr);
    EXPECT_FALSE(first->resident(vmm_.at_once()));  // asked, not waited for
    // Every connection is heard between two answers to the observer.
    for (int answers = 0; answers < 2; ++answers) expect_ok(observer->refresh(vmm_.soon()));
    first.reset();
    for (int answers = 0; answers < 2; ++answers) expect_ok(observer->refresh(vmm_.soon()));
    const auto next = vmm_.connect(Role::restorer);
    ASSERT_NE(next, nullptr);
    if (auto given = next->take_userfault(vmm_.soon()); !given) refusal = given.error();
  }
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->code, Errc::busy);
}

// Between the VMM's hole and its report the page is not there.
TEST_P(HookWaitingTest, APageThatIsBeingGivenBackIsNotTakenForAMissingOne) {
  const auto restorer = vmm_.connect(Role::restorer);
  const auto outlet = outlet_of(*restorer);
  for (std::uint64_t page = 0; page < HookVmm::kPages; ++page) put(*outlet, page);
  std::atomic<bool> done{false};
  std::jthread balloon([&] {
    while (!done) {
      const int advice = GetParam() == Backing::anonymous ? MADV_DONTNEED : MADV_REMOVE;
      ASSERT_EQ(::madvise(vmm_.page(10), kPageSizeBytes, advice), 0);
      EXPECT_EQ(pageferry_hook_discard(vmm_.hook(), bytes_of_pages(10), kPageSizeBytes), 0);
    }
  });
  const auto resident = restorer->resident(vmm_.soon());
  done = true;
  EXPECT_TRUE(resident) << resident.error().message;
}

INSTANTIATE_TEST_SUITE_P(Memory, HookWaitingTest,
                         testing::Values(Backing::anonymous, Backing::memfd), [](const auto& each) {
                           return each.param == Backing::anonymous ? "Anonymous" : "Memfd";
                         });

// 2 MiB pages: a page that is missing, one that was given back, and residency are counted in whole ones.
TEST(HookHugePagesTest, AGuestOnHugePagesIsRestored) {
  constexpr std::uint64_t kHuge = 4;
  const HugePages pages(kHuge);
  ASSERT_TRUE(pages.enough()) << "needs root, or 4 free huge pages";
  const UserfaultMemory memory(kHuge * kHugeBytes, Backing::huge_pages);
  HookVmm vmm;
  vmm.config().incoming = 1;
  vmm.config().slot_count = 1;
  vmm.slot(0).memory_fd = -1;
  vmm.slot(0).host_address = memory.data();
  vmm.slot(0).size_bytes = memory.bytes();
  EXPECT_EQ(vmm.start(), -EINVAL);
  EXPECT_THAT(vmm.error(), HasSubstr("backing_page_bytes is 4096"));
  vmm.slot(0).backing_page_bytes = kHugeBytes;
  vmm.start_well();
  const auto restorer = vmm.connect(Role::restorer);
  auto userfault = restorer->take_userfault(vmm.soon());
  ASSERT_TRUE(userfault) << userfault.error().message;
  UserfaultOutlet outlet(restorer->vm().layout, {memory.address()});
  expect_ok(outlet.open(std::move(*userfault), tables_of()));
  EXPECT_EQ(pageferry_hook_discard(vmm.hook(), kHugeBytes, kPageSizeBytes), -EINVAL);
  EXPECT_EQ(pageferry_hook_discard(vmm.hook(), kHugeBytes, kHugeBytes), 0);
  constexpr std::uint64_t kPerHuge = kHugeBytes / kPageSizeBytes;
  for (std::uint64_t page = 0; page < (kHuge - 1) * kPerHuge; ++page) {
    ASSERT_TRUE(outlet.put_pages(PageChannel::urgent, {PageIndex{page}, 1}, content_of(page, 1)));
  }
  const auto early = restorer->resident(vmm.soon());
  ASSERT_FALSE(early);
  EXPECT_THAT(early.error().message, HasSubstr("the page at 0x600000 is missing"));
  for (std::uint64_t page = (kHuge - 1) * kPerHuge; page < kHuge * kPerHuge; ++page) {
    ASSERT_TRUE(outlet.put_pages(PageChannel::urgent, {PageIndex{page}, 1}, content_of(page, 1)));
  }
  expect_ok(restorer->resident(vmm.soon()));
  EXPECT_EQ(std::memcmp(memory.page(7), content_of(7, 1).data(), kPageSizeBytes), 0);
  EXPECT_TRUE(is_zero_page(PageBytes(memory.page(kPerHuge + 7), kPageSizeBytes)));
  EXPECT_EQ(vmm.stop(), 0);
}

TEST(HookWatchdogTest, APagerIsStartedWhenOneIsLostAndNotBefore) {
  HookVmm vmm;
  vmm.config().incoming = 1;
  const ScratchDirectory directory;
  const std::string pipe = directory.file("started");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const std::string script = "echo \"$1\" > " + pipe;
  const std::array<const char*, 6> command = {"sh",    "-c",       script.c_str(),
                                              "pager", "{socket}", nullptr};
  vmm.config().pager_command = command.data();
  vmm.start_well();
  const UniqueFd started(::open(pipe.c_str(), O_RDWR | O_CLOEXEC));
  pollfd entry{.fd = started.get(), .events = POLLIN, .revents = 0};
  auto restorer = vmm.connect(Role::restorer);
  EXPECT_EQ(::poll(&entry, 1, 0), 0) << "not as long as there is one";
  restorer.reset();
  ASSERT_EQ(::poll(&entry, 1, 10'000), 1);
  std::array<char, 256> line{};
  EXPECT_GT(::read(started.get(), line.data(), line.size() - 1), 0);
  EXPECT_EQ(std::string(line.data()), vmm.path() + "\n");
  vmm.forget();
}

}  // namespace
}  // namespace pageferry
