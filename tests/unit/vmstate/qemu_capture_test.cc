// Goal: the order of a capture is kept, whatever fails leaves the guest as it was and QEMU's settings too, and errors say what happened.
// Method: the real engine against FakeSourceQemu (tests/fakes), which behaves as QEMU does; interop tests repeat it on real ones.
#include "vmstate/qemu_capture.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <string>

#include "fakes/fake_source_qemu.h"
#include "fakes/memory_page_sink.h"

namespace pageferry {
namespace {

using fakes::FakeSourceQemu;
using fakes::MemoryPageSink;
using fakes::SourceStream;

class TestObserver final : public CaptureObserver {
 public:
  Verdict on_progress(const Progress&) override { return verdict; }
  bool may_switch() override {
    ++asked;
    return permitted;
  }
  Verdict on_not_converging(const Progress&) override { return verdict; }

  std::atomic<Verdict> verdict{Verdict::go_on};
  std::atomic<bool> permitted{true};
  std::atomic<int> asked{0};
};

class QemuCaptureTest : public testing::Test {
 protected:
  void make() {
    auto made = QemuCapture::create(qemu, sink, observer, options);
    ASSERT_TRUE(made.has_value()) << made.error().message;
    capture = std::move(*made);
  }
  // Runs as far as it goes; the first error.
  Result<void> run_to_complete() {
    make();
    PF_TRY(capture->start());
    PF_TRY(capture->run_brownout());
    return capture->run_blackout();
  }
  Error error_of_run() {
    auto result = run_to_complete();
    return result ? Error{Errc::exists, 0, "no error"} : result.error();
  }
  // What every abort must leave behind.
  void expect_as_before() {
    EXPECT_EQ(qemu.run_state_now(), "running");
    EXPECT_EQ(qemu.capabilities_now(), FakeSourceQemu().capabilities);
    EXPECT_EQ(qemu.parameters_now(), FakeSourceQemu().parameters);
  }

  FakeSourceQemu qemu;
  MemoryPageSink sink;
  TestObserver observer;
  CaptureOptions options;
  std::unique_ptr<QemuCapture> capture;
};

TEST_F(QemuCaptureTest, CapturesPagesAndStateAndCommits) {
  auto result = run_to_complete();
  ASSERT_TRUE(result.has_value()) << result.error().message;
  EXPECT_EQ(sink.pages.size(), 3U);
  EXPECT_EQ(sink.pages[1], ByteBuffer(kPageSizeBytes, std::byte{5}));
  EXPECT_EQ(capture->state().machine_type, "pc-q35-7.2");
  EXPECT_FALSE(capture->state().device_sections.empty());
  ASSERT_TRUE(capture->commit_source().has_value());
  EXPECT_EQ(qemu.run_state_now(), "postmigrate");
}

TEST_F(QemuCaptureTest, PagesAfterTheStopBelongToTheBlackout) {
  ASSERT_TRUE(run_to_complete().has_value());
  EXPECT_EQ(sink.blackouts, 1);
  EXPECT_EQ(sink.blackout_puts, 1U);
  EXPECT_EQ(capture->stats().blackout_pages, 1U);
}

TEST_F(QemuCaptureTest, StatsHoldTheTimesOfTheBlackoutInOrder) {
  ASSERT_TRUE(run_to_complete().has_value());
  const CaptureStats stats = capture->stats();
  EXPECT_GT(stats.stopped_at, Nanoseconds(0));
  EXPECT_GE(stats.continued_at, stats.stopped_at);
  EXPECT_GE(stats.ram_complete_at, stats.continued_at);
  EXPECT_GE(stats.state_complete_at, stats.ram_complete_at);
  EXPECT_EQ(stats.pages_stored, 3U);
  EXPECT_EQ(stats.pages_zero, 1U);
}

TEST_F(QemuCaptureTest, PassesAreCountedFromOneUpwards) {
  ASSERT_TRUE(run_to_complete().has_value());
  ASSERT_FALSE(sink.passes.empty());
  EXPECT_EQ(sink.passes.front(), 1U);
  EXPECT_TRUE(std::is_sorted(sink.passes.begin(), sink.passes.end()));
}

TEST_F(QemuCaptureTest, PingIsAnswered) {
  ASSERT_TRUE(run_to_complete().has_value());
  EXPECT_EQ(qemu.pongs, 1);
}

TEST_F(QemuCaptureTest, SettingsAreGivenBackAfterACommit) {
  ASSERT_TRUE(run_to_complete().has_value());
  EXPECT_TRUE(qemu.capabilities_now()["return-path"]);
  EXPECT_FALSE(qemu.capabilities_now()["auto-converge"]);
  ASSERT_TRUE(capture->commit_source().has_value());
  capture.reset();
  EXPECT_EQ(qemu.capabilities_now(), FakeSourceQemu().capabilities);
  EXPECT_EQ(qemu.parameters_now(), FakeSourceQemu().parameters);
}

// --- refused before anything is touched ---

class QemuCaptureRefusesTest : public QemuCaptureTest {
 protected:
  void expect_refused(Errc code, const std::string& message) {
    make();
    auto result = capture->start();
    ASSERT_FALSE(result.has_value());
    EXPECT_EQ(result.error().code, code);
    EXPECT_EQ(result.error().message, message);
    for (const std::string& command : qemu.commands()) {
      EXPECT_TRUE(command.starts_with("query-") || command == "qom-get") << command;
    }
    EXPECT_EQ(sink.begins, 0);
  }
};

TEST_F(QemuCaptureRefusesTest, ForeignCapability) {
  qemu.capabilities["multifd"] = true;
  expect_refused(
      Errc::unsupported,
      "migration capability \"multifd\" is on at the source: switch it off to move this guest");
}

TEST_F(QemuCaptureRefusesTest, CapabilityItDoesNotKnow) {
  qemu.capabilities["x-new-wonder"] = true;
  expect_refused(Errc::unsupported,
                 "migration capability \"x-new-wonder\" is on at the source: switch it off to move "
                 "this guest");
}

TEST_F(QemuCaptureRefusesTest, QemuWithoutReturnPath) {
  qemu.capabilities.erase("return-path");
  expect_refused(Errc::unsupported, "this QEMU has no migration capability \"return-path\"");
}

TEST_F(QemuCaptureRefusesTest, MigrationUnderWay) {
  qemu.migration = {{"status", "active"}};
  expect_refused(Errc::busy, "a migration of this guest is already under way (status \"active\")");
}

TEST_F(QemuCaptureRefusesTest, BlockedMigration) {
  qemu.migration = {{"blocked-reasons", {"a vfio device", "another"}}};
  expect_refused(Errc::vmm, "QEMU says that this guest cannot be migrated: a vfio device; another");
}

TEST_F(QemuCaptureRefusesTest, Encryption) {
  qemu.parameters["tls-creds"] = "tls0";
  expect_refused(Errc::unsupported,
                 "migration parameter tls-creds is \"tls0\" at the source: an encrypted stream "
                 "cannot be captured");
}

TEST_F(QemuCaptureRefusesTest, GuestThatWasMigratedBefore) {
  qemu.run_state = "postmigrate";
  qemu.migration = {{"status", "completed"}};
  expect_refused(Errc::vmm,
                 "the guest is in run state \"postmigrate\": it was migrated before, this QEMU "
                 "only holds what is left");
}

TEST_F(QemuCaptureTest, MachineThatDoesNotDescribeItsStateIsRefused) {
  qemu.suppresses_description = true;
  EXPECT_EQ(error_of_run().code, Errc::unsupported);
  EXPECT_FALSE(qemu.was_asked("migrate"));
}

TEST_F(QemuCaptureRefusesTest, GuestThatPanicked) {
  qemu.run_state = "guest-panicked";
  expect_refused(
      Errc::vmm,
      "the guest is in run state \"guest-panicked\", it can be moved when it is running or paused");
}

TEST_F(QemuCaptureRefusesTest, PausedGuestWhoseMigrationFailed) {
  qemu.run_state = "postmigrate";
  qemu.migration = {{"status", "cancelled"}};
  expect_refused(Errc::vmm,
                 "the guest is in run state \"postmigrate\" after a migration that failed: "
                 "continue it once (cont) before "
                 "it is moved");
}

// --- refused in setup ---

TEST_F(QemuCaptureTest, ForeignSectionIsRefusedAndTheGuestRunsOn) {
  qemu.setup = [](SourceStream& s) {
    s.header()
        .configuration()
        .start()
        .block_list({{"pc.ram", 4096}})
        .eos()
        .footer()
        .start("dirty-bitmap", 1, 7);
  };
  make();
  auto result = capture->start();
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::unsupported);
  EXPECT_NE(result.error().message.find("dirty-bitmap"), std::string::npos);
  EXPECT_EQ(sink.begins, 0);
  ASSERT_TRUE(capture->abort().has_value());
  expect_as_before();
}

TEST_F(QemuCaptureTest, SinkThatRefusesToBeginEndsTheMigration) {
  sink.begin_error = Error{Errc::no_space, 0, "the store is full"};
  make();
  auto result = capture->start();
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::no_space);
  ASSERT_TRUE(capture->abort().has_value());
  expect_as_before();
}

TEST_F(QemuCaptureTest, MigrateThatQemuRefusesIsUndone) {
  qemu.refusals["migrate"] = "GenericError: no";
  make();
  auto result = capture->start();
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().message, "GenericError: no");
  ASSERT_TRUE(capture->abort().has_value());
  EXPECT_TRUE(qemu.was_asked("closefd"));
  expect_as_before();
}

// --- brownout ---

TEST_F(QemuCaptureTest, GuestIsNotStoppedBeforeItIsPermitted) {
  observer.permitted = false;
  qemu.brownout = [this](FakeSourceQemu&) {
    while (observer.asked < 3) std::this_thread::yield();
    observer.permitted = true;
  };
  ASSERT_TRUE(run_to_complete().has_value());
  EXPECT_GE(observer.asked, 3);
}

TEST_F(QemuCaptureTest, VerdictAbortEndsTheBrownout) {
  observer.permitted = false;
  observer.verdict = CaptureObserver::Verdict::abort;
  EXPECT_EQ(error_of_run().code, Errc::canceled);
  ASSERT_TRUE(capture->abort().has_value());
  expect_as_before();
}

TEST_F(QemuCaptureTest, VerdictSwitchNowStopsTheGuestWithoutPermission) {
  observer.permitted = false;
  observer.verdict = CaptureObserver::Verdict::switch_now;
  auto result = run_to_complete();
  EXPECT_TRUE(result.has_value()) << result.error().message;
  EXPECT_EQ(qemu.parameters_now()["downtime-limit"], 2'000'000);
}

TEST_F(QemuCaptureTest, StoreErrorEndsTheBrownoutWithItsCode) {
  observer.permitted = false;
  qemu.brownout = [this](FakeSourceQemu& fake) {
    sink.refuse_pages(Error{Errc::no_space, 0, "the store is full"});
    SourceStream more;
    more.part().page("pc.ram", 0, 9).eos().footer();
    fake.send(more.take());
  };
  const Error error = error_of_run();
  EXPECT_EQ(error.code, Errc::no_space);
  ASSERT_TRUE(capture->abort().has_value());
  expect_as_before();
}

struct GuestEndCase {
  const char* event;
  const char* action;
  GuestEnd end;
};
class QemuCaptureGuestEndTest : public QemuCaptureTest,
                                public testing::WithParamInterface<GuestEndCase> {};

TEST_P(QemuCaptureGuestEndTest, IsReported) {
  observer.permitted = false;
  qemu.brownout = [](FakeSourceQemu& fake) {
    fake.event(GetParam().event, {{"action", GetParam().action}});
  };
  const Error error = error_of_run();
  EXPECT_EQ(error.code, Errc::vmm);
  EXPECT_EQ(error.message, guest_end_text(GetParam().end));
  EXPECT_EQ(capture->stats().guest_end, GetParam().end);
  EXPECT_TRUE(capture->abort().has_value());
}

INSTANTIATE_TEST_SUITE_P(
    All, QemuCaptureGuestEndTest,
    testing::Values(GuestEndCase{"SHUTDOWN", "", GuestEnd::shut_down},
                    GuestEndCase{"GUEST_PANICKED", "pause", GuestEnd::panicked},
                    GuestEndCase{"BLOCK_IO_ERROR", "stop", GuestEnd::io_error}));

TEST_F(QemuCaptureTest, PauseByAnotherIsReported) {
  observer.permitted = false;
  qemu.brownout = [](FakeSourceQemu& fake) {
    fake.set_run_state("paused");
    fake.event("STOP");
  };
  EXPECT_EQ(error_of_run().message,
            "the guest was paused by somebody else during the migration (run state \"paused\")");
  EXPECT_EQ(capture->stats().guest_end, GuestEnd::other_pause);
}

TEST_F(QemuCaptureTest, StopWithoutPermissionWhereQemuWaitsForItIsAPauseByAnother) {
  observer.permitted = false;
  qemu.ignores_acknowledgement = true;
  EXPECT_EQ(error_of_run().message, "the guest was paused by somebody else during the migration");
  EXPECT_EQ(capture->stats().guest_end, GuestEnd::other_pause);
}

TEST_F(QemuCaptureTest, GuestThatWasPausedInTheLastMomentIsReported) {
  qemu.captured_run_state = "paused";
  EXPECT_EQ(
      error_of_run().message,
      "the guest was paused by somebody else during the migration (it was stopped as \"paused\")");
  ASSERT_TRUE(capture->abort().has_value());
}

TEST_F(QemuCaptureTest, ReportedDiskErrorAndResetAreNoEnd) {
  qemu.brownout = [](FakeSourceQemu& fake) {
    fake.event("BLOCK_IO_ERROR", {{"action", "report"}});
    fake.event("RESET");
  };
  auto result = run_to_complete();
  ASSERT_TRUE(result.has_value()) << result.error().message;
  EXPECT_EQ(capture->stats().guest_resets, 1U);
}

TEST_F(QemuCaptureTest, EndOfTheStreamIsReportedWithQemusReason) {
  observer.permitted = false;
  qemu.migration = {{"error-desc", "load of migration failed"}};
  qemu.brownout = [](FakeSourceQemu& fake) {
    [[maybe_unused]] auto ended = fake.execute("migrate_cancel", {}, Deadline::never());
  };
  const Error error = error_of_run();
  EXPECT_EQ(error.code, Errc::vmm);
  EXPECT_EQ(error.message,
            "QEMU ended the migration with status \"cancelled\": load of migration failed");
}

// --- stop and abort ---

TEST_F(QemuCaptureTest, RequestStopEndsTheBrownout) {
  observer.permitted = false;
  qemu.brownout = [this](FakeSourceQemu&) { EXPECT_TRUE(capture->request_stop()); };
  EXPECT_EQ(error_of_run().code, Errc::canceled);
  ASSERT_TRUE(capture->abort().has_value());
  expect_as_before();
}

TEST_F(QemuCaptureTest, RequestStopBeforeStartRefusesToStart) {
  make();
  EXPECT_TRUE(capture->request_stop());
  auto result = capture->start();
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::canceled);
  ASSERT_TRUE(capture->abort().has_value());
  expect_as_before();
}

TEST_F(QemuCaptureTest, RequestStopEndsTheBlackout) {
  qemu.stays_in_device = true;
  make();
  ASSERT_TRUE(capture->start().has_value());
  ASSERT_TRUE(capture->run_brownout().has_value());
  std::thread stopper([this] {
    while (capture->stats().ram_complete_at == Nanoseconds(0)) std::this_thread::yield();
    EXPECT_TRUE(capture->request_stop());
  });
  auto result = capture->run_blackout();
  stopper.join();
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::canceled);
  ASSERT_TRUE(capture->abort().has_value());
  expect_as_before();
}

TEST_F(QemuCaptureTest, RequestStopAfterTheCommitIsTooLate) {
  ASSERT_TRUE(run_to_complete().has_value());
  ASSERT_TRUE(capture->commit_source().has_value());
  EXPECT_FALSE(capture->request_stop());
  EXPECT_FALSE(capture->abort().has_value());
  EXPECT_EQ(qemu.run_state_now(), "postmigrate");
}

TEST_F(QemuCaptureTest, CommitAfterRequestStopIsCanceled) {
  ASSERT_TRUE(run_to_complete().has_value());
  EXPECT_TRUE(capture->request_stop());
  auto result = capture->commit_source();
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::canceled);
  ASSERT_TRUE(capture->abort().has_value());
  expect_as_before();
}

TEST_F(QemuCaptureTest, AbortInPreSwitchoverResumesTheGuest) {
  make();
  ASSERT_TRUE(capture->start().has_value());
  ASSERT_TRUE(capture->run_brownout().has_value());
  ASSERT_TRUE(capture->abort().has_value());
  expect_as_before();
}

TEST_F(QemuCaptureTest, AbortOfACompleteCaptureResumesTheGuest) {
  ASSERT_TRUE(run_to_complete().has_value());
  ASSERT_TRUE(capture->abort().has_value());
  expect_as_before();
}

TEST_F(QemuCaptureTest, DestroyingAnUnfinishedCaptureAbortsIt) {
  ASSERT_TRUE(run_to_complete().has_value());
  capture.reset();
  expect_as_before();
}

// --- paused guests ---

TEST_F(QemuCaptureTest, PausedGuestIsCapturedWithoutAStopEvent) {
  qemu.run_state = "paused";
  ASSERT_TRUE(run_to_complete().has_value());
  EXPECT_FALSE(capture->stats().guest_was_running);
  EXPECT_EQ(sink.blackouts, 1);
  ASSERT_TRUE(capture->commit_source().has_value());
}

TEST_F(QemuCaptureTest, PausedGuestWaitsForPermissionInPreSwitchover) {
  qemu.run_state = "paused";
  observer.permitted = false;
  qemu.brownout = [this](FakeSourceQemu&) { EXPECT_EQ(observer.asked, 0); };
  make();
  ASSERT_TRUE(capture->start().has_value());
  std::thread permission([this] {
    while (observer.asked < 2) std::this_thread::yield();
    observer.permitted = true;
  });
  EXPECT_TRUE(capture->run_brownout().has_value());
  permission.join();
}

TEST_F(QemuCaptureTest, AbortOfAPausedGuestLeavesItPaused) {
  qemu.run_state = "paused";
  ASSERT_TRUE(run_to_complete().has_value());
  ASSERT_TRUE(capture->abort().has_value());
  EXPECT_EQ(qemu.run_state_now(), "paused");
}

TEST_F(QemuCaptureTest, CallsOutOfOrderAreRefused) {
  make();
  EXPECT_EQ(capture->run_brownout().error().code, Errc::invalid);
  EXPECT_EQ(capture->run_blackout().error().code, Errc::invalid);
  EXPECT_EQ(capture->commit_source().error().code, Errc::invalid);
}

TEST_F(QemuCaptureTest, SenselessOptionsAreRefused) {
  options.max_downtime = Milliseconds(0);
  EXPECT_FALSE(QemuCapture::create(qemu, sink, observer, options).has_value());
}

}  // namespace
}  // namespace pageferry
