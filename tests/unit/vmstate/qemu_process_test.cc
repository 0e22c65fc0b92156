// qemu_process against a made-up /proc (a directory with the same files) and against this very
// process.
#include "vmstate/qemu_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "fakes/scratch_directory.h"

namespace pageferry {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

// Each argument ends with a NUL; the literal's own NUL is not part of the file.
constexpr char kArguments[] =
    "/usr/bin/qemu-system-x86_64\0-m\0"
    "512\0-name\0\0-S\0";

class QemuProcessTest : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(directory());
    write("cmdline", std::string(kArguments, sizeof(kArguments) - 1));
    write("status",
          "Name:\tqemu\nUid:\t0\t64055\t64055\t64055\nGid:\t0\t108\t108\t108\nGroups:\t36 108 \n");
    write("cgroup", "0::/user.slice/session-2.scope\n");
    link("exe", "/usr/bin/qemu-system-x86_64");
    link("cwd", "/srv/vm one");
  }

  fs::path directory() const { return fs::path(proc_.path()) / std::to_string(::getpid()); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(directory() / name, std::ios::binary) << text;
  }
  void link(const std::string& name, const std::string& target) const {
    fs::remove(directory() / name);
    fs::create_symlink(target, directory() / name);
  }
  Result<VmmProcess> read() const { return read_qemu_process(::getpid(), proc_.path()); }

  testing_support::ScratchDirectory proc_;
};

TEST_F(QemuProcessTest, ReadsArgumentsIncludingEmptyOnes) {
  const auto process = read();
  ASSERT_TRUE(process) << process.error().message;
  EXPECT_THAT(process->argv,
              ElementsAre("/usr/bin/qemu-system-x86_64", "-m", "512", "-name", "", "-S"));
}

TEST_F(QemuProcessTest, ReadsEffectiveIdsGroupsAndPlaces) {
  const auto process = read();
  ASSERT_TRUE(process) << process.error().message;
  EXPECT_EQ(process->uid, 64055U);
  EXPECT_EQ(process->gid, 108U);
  EXPECT_THAT(process->groups, ElementsAre(36U, 108U));
  EXPECT_EQ(process->working_directory, "/srv/vm one");
  EXPECT_EQ(process->executable, "/usr/bin/qemu-system-x86_64");
  EXPECT_FALSE(process->executable_deleted);
  EXPECT_EQ(process->cgroup, "/user.slice/session-2.scope");
}

TEST_F(QemuProcessTest, DeletedExecutableIsNamedWithoutTheKernelsSuffix) {
  link("exe", "/usr/bin/qemu-system-x86_64 (deleted)");
  const auto process = read();
  ASSERT_TRUE(process) << process.error().message;
  EXPECT_EQ(process->executable, "/usr/bin/qemu-system-x86_64");
  EXPECT_TRUE(process->executable_deleted);
}

TEST_F(QemuProcessTest, OtherProgramIsRefusedByName) {
  link("exe", "/usr/sbin/libvirtd");
  const auto process = read();
  ASSERT_FALSE(process);
  EXPECT_EQ(process.error().code, Errc::invalid);
  EXPECT_THAT(process.error().message, HasSubstr("/usr/sbin/libvirtd, no QEMU"));
}

TEST_F(QemuProcessTest, PidNobodyHasIsGone) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(read_qemu_process(child).error().code, Errc::gone);
}

TEST_F(QemuProcessTest, StatusWithoutIdsIsRefused) {
  write("status", "Name:\tqemu\nUid:\tx\n");
  EXPECT_EQ(read().error().code, Errc::invalid);
}

TEST_F(QemuProcessTest, TooManyArgumentsAreRefusedWithTheLimit) {
  std::string many = "qemu";
  many += '\0';
  for (std::size_t i = 0; i < kArgumentsMax; ++i) many += std::string("x\0", 2);
  write("cmdline", many);
  const auto process = read();
  ASSERT_FALSE(process);
  EXPECT_THAT(process.error().message, HasSubstr("4096 arguments"));
}

TEST_F(QemuProcessTest, OwnProcessHasAPidfd) {
  const auto identity = identify_process(::getpid());
  ASSERT_TRUE(identity) << identity.error().message;
  const auto fd = open_pidfd(*identity);
  ASSERT_TRUE(fd) << fd.error().message;
}

TEST_F(QemuProcessTest, PidOfAnotherLifeHasNoPidfd) {
  auto identity = identify_process(::getpid());
  ASSERT_TRUE(identity);
  identity->start_ticks -= 1;
  EXPECT_EQ(open_pidfd(*identity).error().code, Errc::gone);
}

TEST(RefuseLibvirtGuestTest, PlainQemuPasses) {
  VmmProcess process;
  process.argv = {"qemu-system-x86_64", "-name", "guest=web,debug-threads=on"};
  process.cgroup = "/user.slice";
  EXPECT_TRUE(refuse_libvirt_guest(process));
}

TEST(RefuseLibvirtGuestTest, CgroupGivesItAway) {
  VmmProcess process;
  process.argv = {"qemu-system-x86_64"};
  process.cgroup = "/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/emulator";
  const auto refused = refuse_libvirt_guest(process);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("managed by libvirt"));
  EXPECT_THAT(refused.error().message, HasSubstr("--incoming-command"));
}

TEST(RefuseLibvirtGuestTest, MonitorDescriptorOrSecretPathGivesItAway) {
  VmmProcess process;
  process.argv = {"qemu-system-x86_64", "-chardev",
                  "socket,id=charmonitor,fd=25,server=on,wait=off"};
  EXPECT_FALSE(refuse_libvirt_guest(process));
  process.argv = {
      "qemu-system-x86_64", "-object",
      R"({"qom-type":"secret","id":"masterKey0","format":"raw","file":"/var/lib/libvirt/qemu/domain-1-web/k.aes"})"};
  EXPECT_FALSE(refuse_libvirt_guest(process));
}

}  // namespace
}  // namespace pageferry
