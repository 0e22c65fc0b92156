// Goal: the capture engine on real QEMUs, 7.2 and 10: what is captured is the guest's memory at the moment it was stopped, for each
// kind of memory; an abort in any phase leaves the guest running and QEMU's settings as they were.
// Method: the guest of tests/guest dirties memory meanwhile; afterwards QEMU's own dump (pmemsave) is compared page by page. Kinds of
// memory are tried with firmware alone, which starts at once.
#include <gtest/gtest.h>

#include <string>

#include "fakes/huge_pages.h"
#include "interop/capture_rig.h"
#include "interop/qemu_under_test.h"

namespace pageferry {
namespace {

using nlohmann::json;
using testing_support::CaptureRig;
using testing_support::HugePages;
using testing_support::MappedRange;
using testing_support::migration_settings;
using testing_support::QemuSetup;
using testing_support::QemuUnderTest;
using Verdict = CaptureObserver::Verdict;

constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::uint64_t kLowMemory = kMiB;  // below it firmware and video memory overlay the RAM
constexpr Seconds kBound{120};

class QemuCaptureInterop : public testing::TestWithParam<const char*> {
 protected:
  QemuSetup setup() const {
    QemuSetup made;
    made.version = GetParam();
    return made;
  }
  // Firmware that has nothing to boot.
  QemuSetup firmware() const {
    QemuSetup made = setup();
    made.boots_guest = false;
    made.memory_mib = 64;
    return made;
  }
  static json qmp(QemuUnderTest& qemu, const char* command, json arguments = json::object()) {
    const MonotonicClock clock;
    auto answer =
        qemu.watch().execute(command, std::move(arguments), Deadline::after(clock, kBound));
    EXPECT_TRUE(answer.has_value()) << command << ": " << answer.error().message;
    return answer ? *answer : json();
  }
  static std::uint64_t memory_bytes(const QemuSetup& setup) {
    return QemuUnderTest::memory_kib(setup) * 1024;
  }
  void expect_captured(const QemuSetup& made, const std::vector<MappedRange>& ranges) {
    QemuUnderTest qemu(made);
    CaptureRig rig(qemu);
    auto result = rig.run_to_complete();
    ASSERT_TRUE(result.has_value()) << result.error().message;
    for (const MappedRange& range : ranges) EXPECT_EQ(rig.difference(range), "");
    auto committed = rig.capture->commit_source();
    ASSERT_TRUE(committed.has_value()) << committed.error().message;
    EXPECT_TRUE(qemu.reaches_run_state("postmigrate", kBound)) << qemu.run_state();
  }
};

TEST_P(QemuCaptureInterop, MemoryOfABusyGuestIsCapturedAsItWasWhenStopped) {
  QemuSetup busy = setup();
  QemuUnderTest qemu(busy);
  ASSERT_TRUE(qemu.wait_for_serial("PF-READY", 0, kBound)) << qemu.serial();
  CaptureRig rig(qemu);
  rig.observer.permitted = false;
  rig.observer.at_report = [&](const CaptureObserver::Progress&) {
    if (rig.observer.reports == 6)
      rig.observer.permitted = true;  // held for more than a second: several passes
    return Verdict::go_on;
  };
  auto result = rig.run_to_complete();
  ASSERT_TRUE(result.has_value()) << result.error().message;
  EXPECT_EQ(rig.difference({"pc.ram", kLowMemory, kLowMemory, memory_bytes(busy) - kLowMemory}),
            "");
  const CaptureStats stats = rig.capture->stats();
  EXPECT_GE(stats.passes, 2U);
  EXPECT_GT(stats.pages_stored, 64 * kMiB / kPageSizeBytes);
  ASSERT_TRUE(rig.capture->commit_source().has_value());
  EXPECT_TRUE(qemu.reaches_run_state("postmigrate", kBound)) << qemu.run_state();
}

TEST_P(QemuCaptureInterop, AbortInAnyPhaseLeavesTheGuestRunning) {
  QemuUnderTest qemu(setup());
  ASSERT_TRUE(qemu.wait_for_serial("PF-READY", 0, kBound)) << qemu.serial();
  const std::string settings = migration_settings(qemu.watch());
  const auto expect_running = [&](const char* phase) {
    const std::size_t said = qemu.serial().size();
    EXPECT_EQ(qemu.run_state(), "running") << phase;
    EXPECT_TRUE(qemu.wait_for_serial("\nH ", said, kBound)) << phase << ": no heartbeat";
    EXPECT_EQ(migration_settings(qemu.watch()), settings) << phase;
  };
  const std::vector<std::pair<const char*, std::function<void(CaptureRig&)>>> phases = {
      {"setup", [](CaptureRig& rig) { ASSERT_TRUE(rig.capture->start().has_value()); }},
      {"brownout",
       [](CaptureRig& rig) {
         rig.observer.permitted = false;
         rig.observer.at_report = [](const CaptureObserver::Progress&) { return Verdict::abort; };
         ASSERT_TRUE(rig.capture->start().has_value());
         EXPECT_EQ(rig.capture->run_brownout().error().code, Errc::canceled);
       }},
      {"pre-switchover",
       [](CaptureRig& rig) {
         ASSERT_TRUE(rig.capture->start().has_value());
         ASSERT_TRUE(rig.capture->run_brownout().has_value());
       }},
      {"device", [](CaptureRig& rig) { ASSERT_TRUE(rig.run_to_complete().has_value()); }},
      {"request_stop",
       [](CaptureRig& rig) {
         ASSERT_TRUE(rig.run_to_complete().has_value());
         EXPECT_TRUE(rig.capture->request_stop());
         EXPECT_EQ(rig.capture->commit_source().error().code, Errc::canceled);
       }},
  };
  for (const auto& [phase, run] : phases) {
    CaptureRig rig(qemu);
    ASSERT_NO_FATAL_FAILURE(run(rig)) << phase;
    auto aborted = rig.capture->abort();
    ASSERT_TRUE(aborted.has_value()) << phase << ": " << aborted.error().message;
    expect_running(phase);
  }
  qemu.command('c');
  // The whole answer: the line arrives in pieces.
  EXPECT_TRUE(qemu.wait_for_serial(" bad=0", 0, kBound))
      << "the guest found bad memory, or did not answer";
}

TEST_P(QemuCaptureInterop, LostPagerResumesTheGuest) {
  QemuUnderTest qemu(firmware());
  {
    CaptureRig rig(qemu);
    ASSERT_TRUE(rig.run_to_complete().has_value());
    EXPECT_EQ(qemu.run_state(), "finish-migrate");
  }
  EXPECT_EQ(qemu.run_state(), "running");
}

TEST_P(QemuCaptureInterop, GuestThatShutsDownIsReported) {
  QemuUnderTest qemu(setup());
  ASSERT_TRUE(qemu.wait_for_serial("PF-READY", 0, kBound)) << qemu.serial();
  CaptureRig rig(qemu);
  rig.observer.permitted = false;
  ASSERT_TRUE(rig.capture->start().has_value());
  qemu.command('x');
  auto result = rig.capture->run_brownout();
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().message, "the guest shut down during the migration");
  EXPECT_EQ(rig.capture->stats().guest_end, GuestEnd::shut_down);
}

TEST_P(QemuCaptureInterop, PauseByAnotherMonitorIsReported) {
  QemuUnderTest qemu(setup());
  ASSERT_TRUE(qemu.wait_for_serial("PF-READY", 0, kBound)) << qemu.serial();
  CaptureRig rig(qemu);
  rig.observer.permitted = false;
  ASSERT_TRUE(rig.capture->start().has_value());
  qmp(qemu, "stop");
  auto result = rig.capture->run_brownout();
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(rig.capture->stats().guest_end, GuestEnd::other_pause);
  ASSERT_TRUE(rig.capture->abort().has_value());
  EXPECT_EQ(qemu.run_state(), "paused");
}

TEST_P(QemuCaptureInterop, PausedGuestIsCapturedAndStaysPausedOnAbort) {
  QemuUnderTest qemu(firmware());
  qmp(qemu, "stop");
  CaptureRig rig(qemu);
  auto result = rig.run_to_complete();
  ASSERT_TRUE(result.has_value()) << result.error().message;
  EXPECT_EQ(
      rig.difference({"pc.ram", kLowMemory, kLowMemory, memory_bytes(firmware()) - kLowMemory}),
      "");
  EXPECT_FALSE(rig.capture->stats().guest_was_running);
  ASSERT_TRUE(rig.capture->abort().has_value());
  EXPECT_NE(qemu.run_state(), "running");
  qmp(qemu, "cont");
  EXPECT_EQ(qemu.run_state(), "running");
}

TEST_P(QemuCaptureInterop, MemfdMemory) {
  QemuSetup made = firmware();
  const std::string kib = std::to_string(QemuUnderTest::memory_kib(made)) + "K";
  made.machine_options = ",memory-backend=mem0";
  made.memory = {"-m", kib, "-object", "memory-backend-memfd,id=mem0,share=on,size=" + kib};
  expect_captured(made, {{"mem0", kLowMemory, kLowMemory, memory_bytes(made) - kLowMemory}});
}

TEST_P(QemuCaptureInterop, FileMemory) {
  QemuSetup made = firmware();
  const std::string kib = std::to_string(QemuUnderTest::memory_kib(made)) + "K";
  testing_support::ScratchDirectory directory;
  made.machine_options = ",memory-backend=mem0";
  made.memory = {
      "-m", kib, "-object",
      "memory-backend-file,id=mem0,share=on,mem-path=" + directory.file("ram") + ",size=" + kib};
  expect_captured(made, {{"mem0", kLowMemory, kLowMemory, memory_bytes(made) - kLowMemory}});
}

TEST_P(QemuCaptureInterop, TwoNumaNodes) {
  QemuSetup made = firmware();
  made.memory = {"-m",      "128M",
                 "-object", "memory-backend-ram,id=n0,size=64M",
                 "-object", "memory-backend-memfd,id=n1,size=64M",
                 "-numa",   "node,nodeid=0,memdev=n0,cpus=0",
                 "-numa",   "node,nodeid=1,memdev=n1"};
  expect_captured(made, {{"n0", kLowMemory, kLowMemory, 64 * kMiB - kLowMemory},
                         {"n1", 0, 64 * kMiB, 64 * kMiB}});
}

TEST_P(QemuCaptureInterop, HotPluggedMemory) {
  QemuSetup made = firmware();
  made.memory = {"-m", "64M,slots=2,maxmem=1G"};
  QemuUnderTest qemu(made);
  qmp(qemu, "object-add",
      {{"qom-type", "memory-backend-ram"}, {"id", "dimm0mem"}, {"size", 128 * kMiB}});
  qmp(qemu, "device_add", {{"driver", "pc-dimm"}, {"id", "dimm0"}, {"memdev", "dimm0mem"}});
  const json devices = qmp(qemu, "query-memory-devices");
  const auto address = devices.at(0).at("data").at("addr").get<std::uint64_t>();
  CaptureRig rig(qemu);
  auto result = rig.run_to_complete();
  ASSERT_TRUE(result.has_value()) << result.error().message;
  EXPECT_EQ(rig.difference({"pc.ram", kLowMemory, kLowMemory, 63 * kMiB}), "");
  EXPECT_EQ(rig.difference({"dimm0mem", 0, address, 128 * kMiB}), "");
  EXPECT_TRUE(rig.capture->commit_source().has_value());
}

TEST_P(QemuCaptureInterop, HugePagesAreKnownAsSuch) {
  const HugePages pages(32);
  ASSERT_TRUE(pages.enough()) << "needs root and 64 MiB of free memory, or 32 free huge pages";
  QemuSetup made = firmware();
  made.machine_options = ",memory-backend=mem0";
  made.memory = {"-m", "64M", "-object",
                 "memory-backend-memfd,id=mem0,hugetlb=on,share=on,size=64M"};
  QemuUnderTest qemu(made);
  CaptureRig rig(qemu);
  auto result = rig.run_to_complete();
  ASSERT_TRUE(result.has_value()) << result.error().message;
  EXPECT_EQ(rig.capture->state().layout.blocks().at(0).backing_page_bytes, 2 * kMiB);
  EXPECT_EQ(rig.difference({"mem0", kLowMemory, kLowMemory, 63 * kMiB}), "");
  EXPECT_TRUE(rig.capture->commit_source().has_value());
}

TEST_P(QemuCaptureInterop, CapabilitiesOfTheUserAreRefusedAndLeftAlone) {
  QemuUnderTest qemu(firmware());
  for (const char* capability : {"multifd", "xbzrle", "dirty-bitmaps"}) {
    const auto set = [&](bool on) {
      qmp(qemu, "migrate-set-capabilities",
          {{"capabilities", {{{"capability", capability}, {"state", on}}}}});
    };
    set(true);
    const std::string settings = migration_settings(qemu.watch());
    CaptureRig rig(qemu);
    auto result = rig.capture->start();
    ASSERT_FALSE(result.has_value()) << capability;
    EXPECT_EQ(result.error().code, Errc::unsupported);
    EXPECT_NE(result.error().message.find(capability), std::string::npos) << result.error().message;
    EXPECT_EQ(migration_settings(qemu.watch()), settings);
    set(false);
  }
}

TEST_P(QemuCaptureInterop, PostcopyLeftOnIsSwitchedOffForTheCapture) {
  QemuUnderTest qemu(firmware());
  qmp(qemu, "migrate-set-capabilities",
      {{"capabilities", {{{"capability", "postcopy-ram"}, {"state", true}}}}});
  const std::string settings = migration_settings(qemu.watch());
  CaptureRig rig(qemu);
  auto result = rig.run_to_complete();
  ASSERT_TRUE(result.has_value()) << result.error().message;
  ASSERT_TRUE(rig.capture->abort().has_value());
  EXPECT_EQ(migration_settings(qemu.watch()), settings);
}

TEST_P(QemuCaptureInterop, MachineThatDoesNotDescribeItsStateIsRefused) {
  QemuSetup made = firmware();
  made.machine_options = ",suppress-vmdesc=on";
  QemuUnderTest qemu(made);
  CaptureRig rig(qemu);
  auto result = rig.capture->start();
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::unsupported);
  EXPECT_EQ(qemu.run_state(), "running");
}

INSTANTIATE_TEST_SUITE_P(Qemu, QemuCaptureInterop, testing::Values("10", "7.2"),
                         [](const auto& parameter) {
                           return std::string(parameter.param) == "10" ? "10" : "7_2";
                         });

}  // namespace
}  // namespace pageferry
