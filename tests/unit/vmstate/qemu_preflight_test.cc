// The rules of the pre-flight, each alone: a guest that may be moved, changed in one point.
#include "vmstate/qemu_preflight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <functional>

namespace pageferry {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;

json capability(const std::string& name, const std::string& state) {
  return {{"capability", name}, {"state", state == "on"}};
}

PreflightFacts movable() {
  PreflightFacts facts;
  facts.qemu_version = 70222;
  facts.machine_type = "pc-q35-7.2";
  facts.status = {{"status", "running"}};
  facts.migration = json::object();
  facts.parameters = {{"tls-creds", ""}};
  facts.capabilities = json::array();
  for (const char* name :
       {"events", "return-path", "postcopy-ram", "pause-before-switchover", "multifd", "xbzrle"}) {
    facts.capabilities.push_back(capability(name, "off"));
  }
  facts.tpm = json::array();
  facts.block_jobs = json::array();
  facts.memory_devices = {{{"type", "dimm"}, {"data", {{"id", "d1"}}}}};
  facts.devices = {
      {{"id", "net0"},
       {"path", "/machine/peripheral/net0"},
       {"type", "virtio-net-pci"},
       {"properties", json::object()}},
      {{"id", "bal"}, {"type", "virtio-balloon-pci"}, {"properties", {{"free-page-hint", false}}}}};
  facts.block = {
      {{"device", "dr0"},
       {"inserted", {{"file", "a.qcow2"}, {"ro", false}, {"cache", {{"direct", true}}}}}},
      {{"device", "cd0"}}};
  return facts;
}

std::string refusals(const std::function<void(PreflightFacts&)>& change,
                     DestinationHost host = DestinationHost::same) {
  PreflightFacts facts = movable();
  change(facts);
  return refusal_text(judge_source(facts, host));
}

TEST(PreflightTest, OrdinaryGuestMayMove) {
  for (const auto host : {DestinationHost::same, DestinationHost::other}) {
    const auto findings = judge_source(movable(), host);
    EXPECT_FALSE(has_refusal(findings)) << refusal_text(findings);
    EXPECT_THAT(refusal_text(findings), IsEmpty());
    ASSERT_FALSE(findings.empty());
    EXPECT_EQ(findings[0].text, "QEMU 7.2.22, machine type pc-q35-7.2");
  }
}

TEST(PreflightTest, PausedGuestMayMove) {
  EXPECT_THAT(refusals([](PreflightFacts& f) { f.status["status"] = "paused"; }), IsEmpty());
  EXPECT_THAT(refusals([](PreflightFacts& f) { f.status["status"] = "prelaunch"; }), IsEmpty());
}

class CapabilityIsRefused : public testing::TestWithParam<const char*> {};

TEST_P(CapabilityIsRefused, WhenItIsOn) {
  EXPECT_THAT(
      refusals([](PreflightFacts& f) { f.capabilities.push_back(capability(GetParam(), "on")); }),
      AllOf(HasSubstr(std::string("migration capability ") + GetParam() + " is on"),
            HasSubstr("switch it off")));
  EXPECT_THAT(
      refusals([](PreflightFacts& f) { f.capabilities.push_back(capability(GetParam(), "off")); }),
      IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(ForeignStreams, CapabilityIsRefused,
                         testing::Values("multifd", "xbzrle", "compress", "dirty-bitmaps", "block",
                                         "x-colo", "background-snapshot", "rdma-pin-all",
                                         "x-ignore-shared", "mapped-ram", "zero-copy-send",
                                         "x-of-the-future"));

TEST(PreflightTest, CapabilitiesThatAnEarlierMoveLeftOnAreTolerated) {
  EXPECT_THAT(refusals([](PreflightFacts& f) {
                f.capabilities[0]["state"] = true;  // events
                f.capabilities[2]["state"] = true;  // postcopy-ram
                f.capabilities.push_back(capability("postcopy-preempt", "on"));
              }),
              IsEmpty());
}

TEST(PreflightTest, QemuWithoutReturnPathOrPostcopyIsRefused) {
  EXPECT_THAT(refusals([](PreflightFacts& f) { f.capabilities.erase(1); }),
              HasSubstr("no migration capability return-path"));
  EXPECT_THAT(refusals([](PreflightFacts& f) { f.capabilities.erase(2); }),
              HasSubstr("no migration capability postcopy-ram"));
  EXPECT_THAT(refusals([](PreflightFacts& f) { f.capabilities = json(); }),
              HasSubstr("no migration capability"));
}

TEST(PreflightTest, EncryptedOrOtherModeStreamsAreRefused) {
  EXPECT_THAT(refusals([](PreflightFacts& f) { f.parameters["tls-creds"] = "tls0"; }),
              HasSubstr("tls-creds is \"tls0\""));
  EXPECT_THAT(refusals([](PreflightFacts& f) { f.parameters["mode"] = "cpr-reboot"; }),
              HasSubstr("mode is \"cpr-reboot\""));
}

struct StateCase {
  const char* state;
  const char* phase;
  const char* reason;
};
class RunStateIsRefused : public testing::TestWithParam<StateCase> {};

TEST_P(RunStateIsRefused, WithTheReason) {
  EXPECT_THAT(
      refusals([](PreflightFacts& f) {
        f.status["status"] = GetParam().state;
        f.migration["status"] = GetParam().phase;
      }),
      AllOf(HasSubstr(std::string("run state ") + GetParam().state), HasSubstr(GetParam().reason)));
}

INSTANTIATE_TEST_SUITE_P(States, RunStateIsRefused,
                         testing::Values(StateCase{"postmigrate", "completed",
                                                   "only holds what is left"},
                                         StateCase{"postmigrate", "failed", "continue it once"},
                                         StateCase{"inmigrate", "none", "waits for a guest itself"},
                                         StateCase{"internal-error", "none", "running or paused"},
                                         StateCase{"shutdown", "none", "running or paused"},
                                         StateCase{"io-error", "none", "disk error"},
                                         StateCase{"suspended", "none", "wake it first"},
                                         StateCase{"guest-panicked", "none", "running or paused"},
                                         StateCase{"finish-migrate", "none", "running or paused"}));

TEST(PreflightTest, SecondMigrationOfTheSameGuestIsRefused) {
  EXPECT_THAT(refusals([](PreflightFacts& f) { f.migration["status"] = "active"; }),
              HasSubstr("under way already (status active)"));
  EXPECT_THAT(refusals([](PreflightFacts& f) { f.migration["status"] = "cancelled"; }), IsEmpty());
}

TEST(PreflightTest, QemusOwnBlockersAreQuoted) {
  EXPECT_THAT(refusals([](PreflightFacts& f) {
                f.migration["blocked-reasons"] = {"VFIO device doesn't support migration", "b"};
              }),
              AllOf(HasSubstr("QEMU says: VFIO device doesn't support migration"),
                    HasSubstr("; QEMU says: b")));
}

TEST(PreflightTest, MachineWithoutVersionIsRefused) {
  EXPECT_THAT(refusals([](PreflightFacts& f) { f.machine_type = ""; }), HasSubstr("no version"));
}

class DeviceIsRefused : public testing::TestWithParam<const char*> {};

TEST_P(DeviceIsRefused, ByNameAndKind) {
  EXPECT_THAT(refusals([](PreflightFacts& f) {
                f.devices.push_back({{"id", "dev7"}, {"type", GetParam()}});
              }),
              HasSubstr(std::string("device dev7 is a ") + GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Kinds, DeviceIsRefused,
                         testing::Values("vfio-pci", "vhost-user-blk-pci", "vhost-user-fs-pci",
                                         "virtio-mem-pci", "virtio-pmem-pci", "nvdimm",
                                         "ivshmem-plain", "ivshmem-doorbell", "vhost-scsi-pci"));

TEST(PreflightTest, BalloonWithFreePageHintIsRefused) {
  EXPECT_THAT(
      refusals([](PreflightFacts& f) { f.devices[1]["properties"]["free-page-hint"] = true; }),
      HasSubstr("free-page-hint=on"));
}

TEST(PreflightTest, TpmIsRefusedBecauseItsProcessWouldBeShared) {
  EXPECT_THAT(refusals([](PreflightFacts& f) {
                f.tpm = {{{"id", "tpm0"}, {"options", {{"type", "emulator"}}}}};
              }),
              AllOf(HasSubstr("TPM tpm0 (emulator)"), HasSubstr("swtpm")));
}

TEST(PreflightTest, MemoryDevicesOtherThanDimmsAreRefused) {
  EXPECT_THAT(refusals([](PreflightFacts& f) {
                f.memory_devices.push_back({{"type", "virtio-mem"}, {"data", {{"id", "vm0"}}}});
              }),
              HasSubstr("memory device vm0 is a virtio-mem"));
}

TEST(PreflightTest, BufferedDiskIsRefusedForAnotherHostAndAWarningOnThisOne) {
  const auto buffered = [](PreflightFacts& f) {
    f.block[0]["inserted"]["cache"]["direct"] = false;
  };
  EXPECT_THAT(refusals(buffered, DestinationHost::other),
              AllOf(HasSubstr("disk dr0 (a.qcow2)"), HasSubstr("cache.direct=on")));
  PreflightFacts facts = movable();
  buffered(facts);
  const auto findings = judge_source(facts, DestinationHost::same);
  EXPECT_FALSE(has_refusal(findings));
  EXPECT_EQ(findings.back().severity, Severity::warning);
}

TEST(PreflightTest, BufferedReadOnlyDiskIsNoMatter) {
  EXPECT_THAT(refusals(
                  [](PreflightFacts& f) {
                    f.block[0]["inserted"]["cache"]["direct"] = false;
                    f.block[0]["inserted"]["ro"] = true;
                  },
                  DestinationHost::other),
              IsEmpty());
}

TEST(PreflightTest, RunningBlockJobIsRefused) {
  EXPECT_THAT(refusals([](PreflightFacts& f) {
                f.block_jobs = {{{"device", "job0"}, {"type", "mirror"}}};
              }),
              HasSubstr("block job job0 (mirror) is running"));
}

TEST(PreflightTest, AnswersOfUnknownFormAreNoReasonToCrash) {
  PreflightFacts facts = movable();
  facts.devices = {1, "x", json::object(), nullptr};
  facts.block = {1, {{"inserted", 7}}};
  facts.tpm = {3};
  facts.memory_devices = {nullptr};
  facts.migration = 5;
  facts.status = json();
  EXPECT_TRUE(has_refusal(judge_source(facts, DestinationHost::other)));
}

// --- userfaultfd ---

const UserIds kUser = {64055, 108, {}};

TEST(UserfaultTest, DeviceIsEnoughFromQemuEightOn) {
  const UserfaultTrial trial{.become_user_errno = 0, .device_errno = 0, .syscall_errno = EPERM};
  EXPECT_EQ(judge_userfaultfd(kUser, 80000, trial).severity, Severity::note);
  const Finding old = judge_userfaultfd(kUser, 70222, trial);
  EXPECT_EQ(old.severity, Severity::refusal);
  EXPECT_THAT(old.text, HasSubstr("vm.unprivileged_userfaultfd=1"));
}

TEST(UserfaultTest, RefusalNamesBothWaysWithTheirErrors) {
  const Finding finding = judge_userfaultfd(
      kUser, 100000, {.become_user_errno = 0, .device_errno = EACCES, .syscall_errno = EPERM});
  EXPECT_EQ(finding.severity, Severity::refusal);
  EXPECT_THAT(finding.text, AllOf(HasSubstr("user 64055"),
                                  HasSubstr("/dev/userfaultfd: Permission denied (errno 13)"),
                                  HasSubstr("userfaultfd(2): Operation not permitted (errno 1)")));
}

TEST(UserfaultTest, SystemCallIsEnoughForAll) {
  EXPECT_EQ(judge_userfaultfd(kUser, 50200,
                              {.become_user_errno = 0, .device_errno = ENOENT, .syscall_errno = 0})
                .severity,
            Severity::note);
}

TEST(UserfaultTest, UnknownIsAWarning) {
  const Finding finding = judge_userfaultfd(
      kUser, 100000, {.become_user_errno = EPERM, .device_errno = 0, .syscall_errno = 0});
  EXPECT_EQ(finding.severity, Severity::warning);
  EXPECT_THAT(finding.text, HasSubstr("not known"));
}

TEST(UserfaultTest, TrialAsOurselvesGivesAnAnswer) {
  const auto finding = check_userfaultfd({::geteuid(), ::getegid(), {}}, 100000);
  ASSERT_TRUE(finding) << finding.error().message;
  EXPECT_EQ(finding->subject, "userfaultfd");
}

}  // namespace
}  // namespace pageferry
