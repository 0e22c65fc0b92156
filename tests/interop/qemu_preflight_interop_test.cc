// The pre-flight's refusals against real QEMUs: that each obstacle shows in what QEMU answers, in the words the rules look for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "fakes/scratch_directory.h"
#include "interop/qemu_under_test.h"
#include "vmstate/qemu_preflight.h"
#include "vmstate/qemu_spawn.h"

namespace pageferry {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::IsEmpty;

using Argv = std::vector<std::string>;

class QemuPreflightTest : public testing::TestWithParam<const char*> {
 protected:
  void TearDown() override {
    if (running_.qmp == nullptr) return;
    EXPECT_TRUE(end_qemu(running_.identity, running_.qmp.get(), EndBounds{}));
  }

  Deadline soon() const { return Deadline::after(clock_, Seconds(60)); }

  void start(const std::string& machine, const Argv& options) {
    const std::string executable = testing_support::QemuUnderTest::executable(GetParam());
    const std::string socket = directory_.file("qmp");
    Argv argv = {executable, "-nodefaults", "-display", "none",
                 "-machine", machine,       "-qmp",     "unix:" + socket + ",server=on,wait=off"};
    argv.insert(argv.end(), options.begin(), options.end());
    auto running = start_qemu({.kind = LaunchKind::qemu,
                               .executable = executable,
                               .argv = argv,
                               .working_directory = directory_.path(),
                               .uid = ::geteuid(),
                               .gid = ::getegid(),
                               .groups = {},
                               .qmp_socket = socket,
                               .log_file = directory_.file("log"),
                               .fifos = {}},
                              soon());
    ASSERT_TRUE(running) << running.error().message;
    running_ = std::move(*running);
  }
  void start(const Argv& options = {}) { start("q35,accel=tcg", options); }

  std::string refusals(DestinationHost destination = DestinationHost::same) {
    const auto facts = query_preflight_facts(*running_.qmp, soon());
    if (!facts) return "error: " + facts.error().message;
    return refusal_text(judge_source(*facts, destination));
  }

  void ask(const std::string& command, json arguments) {
    const auto reply = running_.qmp->execute(command, std::move(arguments), soon());
    ASSERT_TRUE(reply) << reply.error().message;
  }

  MonotonicClock clock_;
  testing_support::ScratchDirectory directory_;
  RunningQemu running_;
};

TEST_P(QemuPreflightTest, OrdinaryGuestMayMoveAnywhere) {
  start({"-m", "32", "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n", "-device",
         "virtio-balloon-pci"});
  EXPECT_THAT(refusals(DestinationHost::other), IsEmpty());
}

TEST_P(QemuPreflightTest, EachForeignCapabilityThatThisQemuHasIsRefused) {
  start({"-m", "32"});
  const auto listed = running_.qmp->execute("query-migrate-capabilities", json::object(), soon());
  ASSERT_TRUE(listed);
  int tried = 0;
  for (const char* name : {"multifd", "xbzrle", "compress", "dirty-bitmaps", "x-colo",
                           "background-snapshot", "x-ignore-shared", "mapped-ram"}) {
    const auto set = [&](const char* capability, const char* state) {
      return running_.qmp->execute(
          "migrate-set-capabilities",
          {{"capabilities", {{{"capability", capability}, {"state", std::string(state) == "on"}}}}},
          soon());
    };
    if (!set(name, "on")) continue;  // not in this version
    ++tried;
    EXPECT_THAT(refusals(), HasSubstr(std::string("migration capability ") + name + " is on"));
    ASSERT_TRUE(set(name, "off"));
  }
  EXPECT_GE(tried, 6);
  EXPECT_THAT(refusals(), IsEmpty());
}

TEST_P(QemuPreflightTest, BalloonWithFreePageHintIsRefused) {
  start({"-m", "32", "-object", "iothread,id=io", "-device",
         "virtio-balloon-pci,free-page-hint=on,iothread=io"});
  EXPECT_THAT(refusals(), HasSubstr("free-page-hint=on"));
}

TEST_P(QemuPreflightTest, VirtioMemIsRefused) {
  start({"-m", "128,maxmem=1G", "-object", "memory-backend-ram,id=vm,size=256M", "-device",
         "virtio-mem-pci,id=vm0,memdev=vm"});
  EXPECT_THAT(refusals(), HasSubstr("device vm0 is a virtio-mem-pci"));
}

TEST_P(QemuPreflightTest, SharedMemoryDeviceIsRefused) {
  start({"-m", "32", "-object", "memory-backend-ram,id=sh,size=1M,share=on", "-device",
         "ivshmem-plain,id=iv,memdev=sh"});
  EXPECT_THAT(refusals(), HasSubstr("device iv is a ivshmem-plain"));
}

TEST_P(QemuPreflightTest, MachineWithoutAVersionIsRefused) {
  start("isapc,accel=tcg", {"-m", "32", "-cpu", "486"});
  EXPECT_THAT(refusals(), HasSubstr("no version"));
}

TEST_P(QemuPreflightTest, QemuThatWaitsForAGuestIsRefused) {
  start({"-m", "32", "-incoming", "defer"});
  EXPECT_THAT(refusals(), HasSubstr("run state inmigrate"));
}

TEST_P(QemuPreflightTest, BufferedDiskIsRefusedForAnotherHost) {
  ASSERT_EQ(std::system(("qemu-img create -q -f raw " + directory_.file("d.img") + " 1M").c_str()),
            0);
  start({"-m", "32", "-drive", "file=d.img,format=raw,if=virtio,id=dr0"});
  EXPECT_THAT(refusals(DestinationHost::other),
              HasSubstr("disk dr0 (d.img) is not cache.direct=on"));
  EXPECT_THAT(refusals(DestinationHost::same), IsEmpty());
}

TEST_P(QemuPreflightTest, SecondClientOfTheMonitorIsToldWhoHoldsIt) {
  start({"-m", "32"});
  const auto second =
      QmpClient::connect(directory_.file("qmp"), Deadline::after(clock_, Milliseconds(200)));
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::busy);
}

TEST_P(QemuPreflightTest, HumanMonitorIsNamedAsSuch) {
  start({"-m", "32", "-monitor", "unix:" + directory_.file("hmp") + ",server=on,wait=off"});
  const auto client = QmpClient::connect(directory_.file("hmp"), soon());
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code, Errc::vmm);
  EXPECT_THAT(client.error().message, HasSubstr("no QMP server: it says \"QEMU"));
}

TEST_P(QemuPreflightTest, DescriptorReachesQemu) {
  start({"-m", "32"});
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  const UniqueFd read_end(ends[0]);
  const UniqueFd write_end(ends[1]);
  const auto passed =
      running_.qmp->execute_with_fd("getfd", {{"fdname", "m"}}, write_end.get(), soon());
  ASSERT_TRUE(passed) << passed.error().message;
  ask("closefd", {{"fdname", "m"}});
}

INSTANTIATE_TEST_SUITE_P(Qemu, QemuPreflightTest, testing::Values("7.2", "10"),
                         [](const auto& instance) {
                           return instance.param == std::string("10") ? std::string("v10")
                                                                      : std::string("v7_2");
                         });

}  // namespace
}  // namespace pageferry
