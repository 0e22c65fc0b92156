// From a running QEMU to a second one that may take its guest: everything between /proc and the comparison of both machines, on real QEMUs.
// The sources run firmware only, which is enough for all of it and quick.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "fakes/scratch_directory.h"
#include "interop/qemu_under_test.h"
#include "vmstate/qemu_destination_command.h"
#include "vmstate/qemu_host_forwards.h"
#include "vmstate/qemu_machine.h"
#include "vmstate/qemu_preflight.h"
#include "vmstate/qemu_process.h"
#include "vmstate/qemu_spawn.h"
#include "vmstate/run_directory.h"

namespace pageferry {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

using Argv = std::vector<std::string>;

constexpr std::uint32_t kNobody = 65534;

// A display that nobody listens on now, not one of our choice: ctest runs the same test with another QEMU beside it. 0: none.
int free_vnc_display() {
  constexpr int kPortOfDisplay0 = 5900;
  const UniqueFd probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  if (::bind(probe.get(), any, size) != 0 || ::getsockname(probe.get(), any, &size) != 0) return 0;
  return ntohs(address.sin_port) - kPortOfDisplay0;
}

// A QEMU that the test started, ended with it.
struct Vmm {
  RunningQemu running;
  std::string run_directory;
  DestinationCommand command;
  json machine;
  Vmm() = default;
  Vmm(Vmm&& other) noexcept = default;
  Vmm& operator=(Vmm&& other) noexcept = default;
  ~Vmm() {
    if (running.qmp == nullptr) return;
    EXPECT_TRUE(end_qemu(running.identity, running.qmp.get(), EndBounds{}));
  }
  QmpClient& qmp() { return *running.qmp; }
};

class QemuDestinationTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    ASSERT_EQ(::geteuid(), 0U) << "this test needs root: it starts QEMUs as other users";
    // Short, because sockets go into it, and passable, because another user does.
    root_ = directory_.file("r");
    fs::permissions(directory_.path(), fs::perms::all);
  }

  Deadline soon() const { return Deadline::after(clock_, Seconds(60)); }
  std::string file(const std::string& name) const { return directory_.file(name); }

  void make_image(const std::string& arguments) const {
    ASSERT_EQ(
        std::system(("cd '" + directory_.path() + "' && qemu-img create -q " + arguments).c_str()),
        0)
        << arguments;
  }

  // Started by hand, as a user would: the machine type has no version, everything is where the user wants it.
  Vmm source(const Argv& options, std::uint32_t user = 0) {
    Argv argv = {testing_support::QemuUnderTest::executable(GetParam()),
                 "-nodefaults",
                 "-display",
                 "none",
                 "-machine",
                 "q35,accel=tcg",
                 "-qmp",
                 "unix:" + file("user-qmp") + ",server=on,wait=off"};
    argv.insert(argv.end(), options.begin(), options.end());
    Vmm vmm;
    start(argv, file("user-qmp"), file("source.log"), argv[0], user, {}, vmm);
    return vmm;
  }

  void start(const Argv& argv, const std::string& qmp, const std::string& log,
             const std::string& executable, std::uint32_t user,
             const std::vector<std::string>& fifos, Vmm& vmm) const {
    auto running = start_qemu({.kind = LaunchKind::qemu,
                               .executable = executable,
                               .argv = argv,
                               .working_directory = directory_.path(),
                               .uid = user,
                               .gid = user,
                               .groups = {},
                               .qmp_socket = qmp,
                               .log_file = log,
                               .fifos = fifos},
                              soon());
    ASSERT_TRUE(running) << running.error().message;
    vmm.running = std::move(*running);
    auto machine = describe_machine(vmm.qmp(), soon());
    ASSERT_TRUE(machine) << machine.error().message;
    vmm.machine = std::move(*machine);
  }

  // What the tool does with a running source.
  void start_destination(Vmm& source, const std::string& run_id, Vmm& destination) {
    const auto process = read_qemu_process(source.running.identity.pid);
    ASSERT_TRUE(process) << process.error().message;
    ASSERT_TRUE(refuse_libvirt_guest(*process));
    auto machine = describe_machine(source.qmp(), soon());
    ASSERT_TRUE(machine) << machine.error().message;
    source.machine = *machine;
    const auto argv = argv_with_hotplug(process->argv, *machine);
    ASSERT_TRUE(argv) << argv.error().message;
    const auto directory = make_run_directory(root_, "vm", run_id, {process->uid, process->gid});
    ASSERT_TRUE(directory) << directory.error().message;
    auto command = make_destination_command(
        *argv, {.host = DestinationHost::same,
                .run_directory = *directory,
                .machine_type = (*machine)["machine-type"],
                .run_id = run_id,
                .is_directory = [](const std::string& path) { return fs::is_directory(path); }});
    ASSERT_TRUE(command) << command.error().message;
    destination.run_directory = *directory;
    destination.command = std::move(*command);
    start(destination.command.argv, destination.command.qmp_socket, *directory + "/qemu.log",
          process->executable, process->uid, destination.command.fifos, destination);
  }

  Result<json> ask(Vmm& vmm, const std::string& command, json arguments = json::object()) {
    return vmm.qmp().execute(command, std::move(arguments), soon());
  }

  MonotonicClock clock_;
  testing_support::ScratchDirectory directory_;
  std::string root_;
};

TEST_P(QemuDestinationTest, RichCommandLineGivesAnEqualMachineBesideTheSource) {
  make_image("-f qcow2 base.qcow2 8M");
  make_image("-f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
  std::ofstream(file("serial.log")) << "before\n";
  const std::string memory_file = fmt::format("/dev/shm/pageferry-interop-{}", ::getpid());
  Vmm user_vmm =
      source({"-m",       "96",
              "-object",  "memory-backend-file,id=mem0,size=96M,share=on,mem-path=" + memory_file,
              "-machine", "memory-backend=mem0",
              "-smp",     "2",
              "-name",    "web,debug-threads=on",
              "-uuid",    "11111111-2222-3333-4444-555555555555",
              "-pidfile", file("web.pid"),
              "-monitor", "unix:" + file("hmp") + ",server,nowait",
              "-chardev", "file,id=s0,append=on,path=" + file("serial.log"),
              "-serial",  "chardev:s0",
              "-chardev", "socket,id=agent,server=on,wait=off,host=127.0.0.1,port=0",
              "-device",  "virtio-serial-pci",
              "-device",  "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
              "-drive",   "file=top.qcow2,if=none,id=dr0,cache=none",
              "-object",  "iothread,id=io",
              "-device",  "virtio-blk-pci,drive=dr0,id=blk0,iothread=io",
              "-netdev",  "user,id=n0,hostfwd=tcp:127.0.0.1:0-:22",
              "-device",  "virtio-net-pci,netdev=n0",
              "-device",  "pcie-root-port,id=rp0,chassis=1",
              "-device",  "virtio-rng-pci,bus=rp0",
              "-vnc",     "unix:" + file("vnc"),
              "-device",  "VGA",
              "-gdb",     "unix:" + file("gdb") + ",server=on,wait=off"});
  ASSERT_NE(user_vmm.running.qmp, nullptr);
  Vmm destination;
  start_destination(user_vmm, "a1", destination);
  ASSERT_NE(destination.running.qmp, nullptr);
  EXPECT_THAT(compare_machines(user_vmm.machine, destination.machine, directory_.path()),
              IsEmpty());
  EXPECT_EQ((*ask(destination, "query-status"))["status"], "inmigrate");

  std::ifstream log(file("serial.log"));
  std::string first;
  std::getline(log, first);
  EXPECT_EQ(first, "before") << "the serial log was not appended to";
  for (const char* name :
       {"web.pid", "hmp", "vnc", "gdb.sock", "user-qmp", "pageferry-qmp.sock", "qemu.log"}) {
    EXPECT_TRUE(fs::exists(destination.run_directory + "/" + name) ||
                std::string(name) == "gdb.sock")
        << name;
  }
  ASSERT_EQ(destination.command.files_made.size(), 1U);
  EXPECT_TRUE(fs::exists(destination.command.files_made[0]));

  // The ports come back when the source has ended.
  const auto forwards = query_host_forwards(user_vmm.qmp(), soon());
  ASSERT_TRUE(forwards);
  ASSERT_EQ(forwards->size(), 1U);
  EXPECT_THAT(query_host_forwards(destination.qmp(), soon()).value(), IsEmpty());
  ASSERT_TRUE(end_qemu(user_vmm.running.identity, user_vmm.running.qmp.get(), EndBounds{}));
  user_vmm.running.qmp.reset();
  const auto added = add_host_forwards(destination.qmp(), *forwards, soon());
  ASSERT_TRUE(added) << added.error().message;
  EXPECT_EQ(query_host_forwards(destination.qmp(), soon()).value(), *forwards);

  ASSERT_TRUE(end_qemu(destination.running.identity, destination.running.qmp.get(), EndBounds{}));
  destination.running.qmp.reset();
  ASSERT_TRUE(remove_run_directory(root_, destination.run_directory));
  EXPECT_FALSE(fs::exists(root_ + "/vm"));
  fs::remove(memory_file);
  fs::remove(destination.command.files_made[0]);
}

TEST_P(QemuDestinationTest, EachDestinationOfTheLastHasTheSameCommandLineLength) {
  const auto display = free_vnc_display();
  ASSERT_GT(display, 0);
  Vmm first = source({"-m", "32", "-serial", "file:" + file("serial.log"), "-vnc",
                      fmt::format("127.0.0.1:{}", display), "-netdev",
                      "user,id=n,hostfwd=tcp:127.0.0.1:0-:22", "-device", "e1000,netdev=n"});
  ASSERT_NE(first.running.qmp, nullptr);
  std::vector<std::size_t> lengths;
  Vmm last = std::move(first);
  for (const char* run_id : {"a1", "a2", "a3"}) {
    Vmm next;
    start_destination(last, run_id, next);
    ASSERT_NE(next.running.qmp, nullptr);
    EXPECT_THAT(compare_machines(last.machine, next.machine, directory_.path()), IsEmpty());
    lengths.push_back(next.command.argv.size());
    ASSERT_TRUE(end_qemu(last.running.identity, last.running.qmp.get(), EndBounds{}));
    last.running.qmp.reset();
    last = std::move(next);
  }
  EXPECT_EQ(lengths[1], lengths[0]);
  EXPECT_EQ(lengths[2], lengths[0]);
}

TEST_P(QemuDestinationTest, HotPluggedPartsAreThereAtTheDestination) {
  make_image("-f raw spare.img 4M");
  Vmm plugged = source({"-m", "64,slots=4,maxmem=1G", "-smp", "1,maxcpus=2", "-drive",
                        "file=spare.img,format=raw,if=none,id=spare,cache=none", "-device",
                        "pcie-root-port,id=rp0,chassis=1", "-object",
                        "memory-backend-ram,id=m0,size=128M", "-device", "pc-dimm,memdev=m0"});
  ASSERT_NE(plugged.running.qmp, nullptr);
  ASSERT_TRUE(ask(
      plugged, "object-add",
      {{"qom-type", "memory-backend-memfd"}, {"id", "m1"}, {"size", 134217728}, {"share", true}}));
  ASSERT_TRUE(ask(plugged, "device_add", {{"driver", "pc-dimm"}, {"id", "d1"}, {"memdev", "m1"}}));
  const auto disk =
      ask(plugged, "device_add",
          {{"driver", "virtio-blk-pci"}, {"id", "blk1"}, {"drive", "spare"}, {"bus", "rp0"}});
  ASSERT_TRUE(disk) << disk.error().message;
  const auto cpu = ask(plugged, "device_add",
                       {{"driver", "qemu64-x86_64-cpu"},
                        {"id", "cpu1"},
                        {"socket-id", 1},
                        {"core-id", 0},
                        {"thread-id", 0}});
  const auto same_socket = cpu ? cpu
                               : ask(plugged, "device_add",
                                     {{"driver", "qemu64-x86_64-cpu"},
                                      {"id", "cpu1"},
                                      {"socket-id", 0},
                                      {"core-id", 1},
                                      {"thread-id", 0}});
  ASSERT_TRUE(same_socket) << same_socket.error().message;
  Vmm destination;
  start_destination(plugged, "a1", destination);
  ASSERT_NE(destination.running.qmp, nullptr);
  EXPECT_THAT(compare_machines(plugged.machine, destination.machine, directory_.path()), IsEmpty());
}

TEST_P(QemuDestinationTest, DeviceThatCannotBeWrittenAsAnOptionIsRefusedByName) {
  Vmm plugged = source({"-m", "32", "-device", "pcie-root-port,id=rp0,chassis=1"});
  ASSERT_NE(plugged.running.qmp, nullptr);
  ASSERT_TRUE(ask(plugged, "device_add",
                  {{"driver", "virtio-balloon-pci"}, {"id", "late"}, {"bus", "rp0"}}));
  const auto machine = describe_machine(plugged.qmp(), soon());
  ASSERT_TRUE(machine) << machine.error().message;
  const auto argv = argv_with_hotplug({"qemu"}, *machine);
  ASSERT_FALSE(argv);
  EXPECT_THAT(argv.error().message, HasSubstr("device late (virtio-balloon-pci)"));
}

TEST_P(QemuDestinationTest, ImageThatASnapshotPutOnTopIsADifference) {
  make_image("-f qcow2 disk.qcow2 8M");
  Vmm snapped = source({"-m", "32", "-drive", "file=disk.qcow2,if=virtio,id=dr0,cache=none"});
  ASSERT_NE(snapped.running.qmp, nullptr);
  Vmm destination;
  start_destination(snapped, "a1", destination);
  ASSERT_NE(destination.running.qmp, nullptr);
  EXPECT_THAT(compare_machines(snapped.machine, destination.machine, directory_.path()), IsEmpty());
  const auto snapshot = ask(snapped, "blockdev-snapshot-sync",
                            {{"device", "dr0"}, {"snapshot-file", file("over.qcow2")}});
  ASSERT_TRUE(snapshot) << snapshot.error().message;
  const auto now = describe_machine(snapped.qmp(), soon());
  ASSERT_TRUE(now) << now.error().message;
  EXPECT_THAT(compare_machines(*now, destination.machine, directory_.path()),
              Contains(HasSubstr("over.qcow2")));
}

TEST_P(QemuDestinationTest, SnapshotsAndEjectedMediaBeforeTheMoveAreFollowed) {
  make_image("-f qcow2 disk.qcow2 8M");
  make_image("-f raw cd.iso 1M");
  Vmm changed = source({"-m", "32", "-drive", "file=disk.qcow2,if=virtio,id=dr0,cache=none",
                        "-drive", "file=cd.iso,format=raw,if=none,media=cdrom,id=cd0", "-device",
                        "ide-cd,drive=cd0,id=cd"});
  ASSERT_NE(changed.running.qmp, nullptr);
  ASSERT_TRUE(ask(changed, "blockdev-snapshot-sync",
                  {{"device", "dr0"}, {"snapshot-file", file("over.qcow2")}}));
  const auto ejected = ask(changed, "eject", {{"id", "cd"}, {"force", true}});
  ASSERT_TRUE(ejected) << ejected.error().message;
  Vmm destination;
  start_destination(changed, "a1", destination);
  ASSERT_NE(destination.running.qmp, nullptr);
  EXPECT_THAT(compare_machines(changed.machine, destination.machine, directory_.path()), IsEmpty());
}

TEST_P(QemuDestinationTest, OtherMachineIsFoundInEveryPoint) {
  Vmm small = source({"-m", "64", "-device", "virtio-rng-pci,id=rng"});
  ASSERT_NE(small.running.qmp, nullptr);
  Vmm other;
  start({testing_support::QemuUnderTest::executable(GetParam()), "-nodefaults", "-display", "none",
         "-machine", "pc,accel=tcg", "-m", "32", "-smp", "2", "-qmp",
         "unix:" + file("other") + ",server=on,wait=off", "-S"},
        file("other"), file("other.log"), testing_support::QemuUnderTest::executable(GetParam()), 0,
        {}, other);
  ASSERT_NE(other.running.qmp, nullptr);
  const auto differences = compare_machines(small.machine, other.machine, directory_.path());
  for (const char* what : {"machine type:", "CPU ", "memory:", "RAM block pc.ram size",
                           "device rng: only the source"}) {
    EXPECT_THAT(differences, Contains(HasSubstr(what)));
  }
}

// The stock QEMU, since others than root must get at it.
class StockQemuDestinationTest : public QemuDestinationTest {};

TEST_P(StockQemuDestinationTest, DestinationRunsAsTheUserOfTheSource) {
  Vmm of_nobody = source({"-m", "32"}, kNobody);
  ASSERT_NE(of_nobody.running.qmp, nullptr);
  Vmm destination;
  start_destination(of_nobody, "a1", destination);
  ASSERT_NE(destination.running.qmp, nullptr);
  EXPECT_EQ(destination.qmp().peer().uid, kNobody);
  struct stat status {};
  ASSERT_EQ(::stat(destination.run_directory.c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, kNobody);
  EXPECT_EQ(status.st_mode & 07777U, 0700U);
}

TEST_P(QemuDestinationTest, QemuThatCannotStartSaysWhy) {
  const std::string executable = testing_support::QemuUnderTest::executable(GetParam());
  const auto running = start_qemu(
      {.kind = LaunchKind::qemu,
       .executable = executable,
       .argv = {executable, "-nodefaults", "-display", "none", "-drive", "file=/nonexistent.img"},
       .working_directory = directory_.path(),
       .uid = 0,
       .gid = 0,
       .groups = {},
       .qmp_socket = file("q"),
       .log_file = file("log"),
       .fifos = {}},
      soon());
  ASSERT_FALSE(running);
  EXPECT_EQ(running.error().code, Errc::vmm);
  EXPECT_THAT(running.error().message, HasSubstr("Could not open '/nonexistent.img'"));
}

TEST_P(QemuDestinationTest, IncomingCommandMayDaemonize) {
  const std::string executable = testing_support::QemuUnderTest::executable(GetParam());
  const auto directory = make_run_directory(root_, "vm", "t1", {0, 0});
  ASSERT_TRUE(directory) << directory.error().message;
  const auto command = make_destination_command_from_template(
      executable +
          " -nodefaults -display none -machine q35,accel=tcg -m 32 -S -incoming defer -daemonize "
          "-qmp unix:{qmp},server=on,wait=off",
      *directory);
  ASSERT_TRUE(command) << command.error().message;
  auto running = start_qemu({.kind = LaunchKind::shell,
                             .executable = "",
                             .argv = command->argv,
                             .working_directory = directory_.path(),
                             .uid = 0,
                             .gid = 0,
                             .groups = {},
                             .qmp_socket = command->qmp_socket,
                             .log_file = *directory + "/qemu.log",
                             .fifos = {}},
                            soon());
  ASSERT_TRUE(running) << running.error().message;
  EXPECT_TRUE(read_qemu_process(running->identity.pid));
  EXPECT_EQ(end_qemu(running->identity, running->qmp.get(), EndBounds{}).value(), EndedBy::quit);
}

INSTANTIATE_TEST_SUITE_P(Qemu, QemuDestinationTest, testing::Values("7.2", "10"),
                         [](const auto& instance) {
                           return instance.param == std::string("10") ? std::string("v10")
                                                                      : std::string("v7_2");
                         });

INSTANTIATE_TEST_SUITE_P(Qemu, StockQemuDestinationTest, testing::Values("7.2"));

}  // namespace
}  // namespace pageferry
