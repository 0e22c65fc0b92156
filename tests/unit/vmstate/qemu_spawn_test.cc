// start_qemu and end_qemu with this very program in the part of QEMU: called with "-fake-qemu" it
// writes what it finds (user, session, descriptors, ...) to its log and answers on a monitor
// socket, as well-behaved or as stubborn as told.
#include "vmstate/qemu_spawn.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "fakes/fake_qmp_server.h"
#include "fakes/scratch_directory.h"
#include "vmstate/qemu_child.h"

namespace pageferry {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class QemuSpawnTest : public testing::Test {
 protected:
  QemuLaunch launch(const std::string& behaviour) const {
    return {.kind = LaunchKind::qemu,
            .executable = "/proc/self/exe",
            .argv = {"fake-qemu", "-fake-qemu", socket_, behaviour},
            .working_directory = directory_.path(),
            .uid = ::geteuid(),
            .gid = ::getegid(),
            .groups = {},
            .qmp_socket = socket_,
            .log_file = directory_.file("qemu.log"),
            .fifos = {}};
  }
  Deadline soon() const { return Deadline::after(clock_, Seconds(20)); }
  std::string log() const {
    std::ifstream in(directory_.file("qemu.log"));
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  }
  RunningQemu started(const std::string& behaviour) const {
    auto running = start_qemu(launch(behaviour), soon());
    if (!running) {
      ADD_FAILURE() << running.error().message;
      return {};
    }
    return std::move(*running);
  }

  MonotonicClock clock_;
  testing_support::ScratchDirectory directory_;
  std::string socket_ = directory_.file("q");
  EndBounds patient_{
      .after_quit = Seconds(20), .after_terminate = Seconds(20), .after_kill = Seconds(20)};
};

TEST_F(QemuSpawnTest, StartedQemuAnswersAndIsIdentified) {
  auto running = started("obey");
  EXPECT_EQ(running.qmp->qemu_version(), 70222);
  EXPECT_EQ(running.identity.pid, running.qmp->peer().pid);
  EXPECT_TRUE(is_alive(running.identity).value());
  EXPECT_EQ(end_qemu(running.identity, running.qmp.get(), patient_).value(), EndedBy::quit);
  EXPECT_FALSE(is_alive(running.identity).value());
}

TEST_F(QemuSpawnTest, ChildIsDetachedFromUs) {
  const UniqueFd leak(
      ::open("/dev/null", O_RDONLY));  // not close-on-exec: must be closed all the same
  ASSERT_TRUE(leak.valid());
  sigset_t blocked;
  sigset_t before;
  ::sigemptyset(&blocked);
  ::sigaddset(&blocked, SIGUSR1);
  ::pthread_sigmask(SIG_BLOCK, &blocked, &before);
  ::signal(SIGPIPE, SIG_IGN);
  auto running = started("obey");
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  const std::string seen = log();
  EXPECT_THAT(seen, HasSubstr("session leader: yes"));
  EXPECT_THAT(seen, HasSubstr("descriptors beyond stdio: 0"));
  EXPECT_THAT(seen, HasSubstr("stdin: /dev/null"));
  EXPECT_THAT(seen, HasSubstr("blocked signals: 0"));
  EXPECT_THAT(seen, HasSubstr("SIGPIPE ignored: no"));
  EXPECT_THAT(seen, HasSubstr("directory: " + directory_.path()));
  EXPECT_THAT(seen, HasSubstr("argv0: fake-qemu"));
  ASSERT_TRUE(end_qemu(running.identity, running.qmp.get(), patient_));
}

TEST_F(QemuSpawnTest, LogAndFifosArePrivate) {
  QemuLaunch with_fifo = launch("obey");
  with_fifo.fifos = {directory_.file("p.in")};
  auto running = start_qemu(with_fifo, soon());
  ASSERT_TRUE(running) << running.error().message;
  struct stat status {};
  ASSERT_EQ(::stat(directory_.file("qemu.log").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0600U);
  ASSERT_EQ(::stat(directory_.file("p.in").c_str(), &status), 0);
  EXPECT_TRUE(S_ISFIFO(status.st_mode));
  EXPECT_EQ(status.st_mode & 07777U, 0600U);
  ASSERT_TRUE(end_qemu(running->identity, running->qmp.get(), patient_));
}

TEST_F(QemuSpawnTest, EarlyDeathIsReportedWithTheLastLinesOfTheLog) {
  const auto running = start_qemu(launch("die"), soon());
  ASSERT_FALSE(running);
  EXPECT_EQ(running.error().code, Errc::vmm);
  EXPECT_THAT(running.error().message, HasSubstr("exit status 3"));
  EXPECT_THAT(running.error().message, HasSubstr("qemu: could not open 'disk.img'"));
}

TEST_F(QemuSpawnTest, MonitorThatNeverOpensEndsInATimeoutAndNothingIsLeft) {
  const auto running = start_qemu(launch("silent"), Deadline::after(clock_, Milliseconds(300)));
  ASSERT_FALSE(running);
  EXPECT_EQ(running.error().code, Errc::timeout);
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1) << "a child is left";
}

TEST_F(QemuSpawnTest, MissingProgramAndDirectoryAreNamed) {
  QemuLaunch wrong = launch("obey");
  wrong.executable = "/nonexistent/qemu";
  EXPECT_THAT(start_qemu(wrong, soon()).error().message,
              HasSubstr("/nonexistent/qemu is no program"));
  wrong = launch("obey");
  wrong.executable = "";
  wrong.argv[0] = "no-such-qemu-anywhere";
  EXPECT_THAT(start_qemu(wrong, soon()).error().message,
              HasSubstr("no-such-qemu-anywhere is in no directory of PATH"));
  wrong = launch("obey");
  wrong.working_directory = "/nonexistent";
  EXPECT_THAT(start_qemu(wrong, soon()).error().message, HasSubstr("chdir /nonexistent"));
}

TEST_F(QemuSpawnTest, ShellMayEndWhileQemuGoesOn) {
  QemuLaunch shell = launch("");
  shell.kind = LaunchKind::shell;
  shell.executable = "";
  const std::string self = fs::read_symlink("/proc/self/exe").string();
  shell.argv = {"/bin/sh", "-c", fmt::format("'{}' -fake-qemu {} obey & exit 0", self, socket_)};
  auto running = start_qemu(shell, soon());
  ASSERT_TRUE(running) << running.error().message;
  EXPECT_EQ(running->identity.pid, running->qmp->peer().pid);
  EXPECT_EQ(end_qemu(running->identity, running->qmp.get(), patient_).value(), EndedBy::quit);
}

TEST_F(QemuSpawnTest, FailingShellCommandIsReported) {
  QemuLaunch shell = launch("");
  shell.kind = LaunchKind::shell;
  shell.executable = "";
  shell.argv = {"/bin/sh", "-c", "echo no such thing >&2; exit 7"};
  const auto running = start_qemu(shell, soon());
  ASSERT_FALSE(running);
  EXPECT_THAT(running.error().message,
              HasSubstr("the command ended at its start (exit status 7): no such thing"));
}

TEST_F(QemuSpawnTest, QemuThatIgnoresQuitIsTerminated) {
  auto running = started("ignore-quit");
  EndBounds bounds = patient_;
  bounds.after_quit = Milliseconds(100);
  EXPECT_EQ(end_qemu(running.identity, running.qmp.get(), bounds).value(), EndedBy::terminate);
}

TEST_F(QemuSpawnTest, QemuThatIgnoresTerminateIsKilled) {
  auto running = started("ignore-terminate");
  EndBounds bounds = patient_;
  bounds.after_terminate = Milliseconds(100);
  EXPECT_EQ(end_qemu(running.identity, nullptr, bounds).value(), EndedBy::kill);
}

TEST_F(QemuSpawnTest, EndingAGoneQemuOrAReusedPidTouchesNobody) {
  auto running = started("obey");
  ASSERT_TRUE(end_qemu(running.identity, running.qmp.get(), patient_));
  EXPECT_EQ(end_qemu(running.identity, nullptr, patient_).value(), EndedBy::was_gone);
  ProcessIdentity ours = this_process().value();
  ours.start_ticks += 1;
  EXPECT_EQ(end_qemu(ours, nullptr, patient_).value(), EndedBy::was_gone);
}

TEST(LastLinesTest, JoinsTheLastOnesAndReplacesControlCharacters) {
  testing_support::ScratchDirectory directory;
  std::ofstream(directory.file("log")) << "one\ntwo\nth\033ree\r\n\nfour\n";
  EXPECT_EQ(last_lines_of(directory.file("log"), 3), "two | th?ree | four");
  EXPECT_EQ(last_lines_of(directory.file("none"), 3), "");
}

// --- the part of QEMU ---

void print_what_we_are(const char* name) {
  int beyond = 0;
  for (int fd = 3; fd < 1024; ++fd) beyond += ::fcntl(fd, F_GETFD) >= 0 ? 1 : 0;
  sigset_t mask;
  ::sigprocmask(SIG_SETMASK, nullptr, &mask);
  int blocked = 0;
  for (int signal = 1; signal < NSIG; ++signal)
    blocked += ::sigismember(&mask, signal) == 1 ? 1 : 0;
  struct sigaction pipe {};
  ::sigaction(SIGPIPE, nullptr, &pipe);
  std::printf(
      "argv0: %s\nsession leader: %s\ndescriptors beyond stdio: %d\nblocked signals: %d\nSIGPIPE "
      "ignored: %s\n",
      name, ::getsid(0) == ::getpid() ? "yes" : "no", beyond, blocked,
      pipe.sa_handler == SIG_IGN ? "yes" : "no");
  std::printf("stdin: %s\ndirectory: %s\n", fs::read_symlink("/proc/self/fd/0").c_str(),
              fs::current_path().c_str());
  std::fflush(stdout);
}

int be_qemu(const char* name, const std::string& socket, const std::string& behaviour) {
  print_what_we_are(name);
  if (behaviour == "die") {
    std::fprintf(stderr, "qemu: could not open 'disk.img'\n");
    return 3;
  }
  if (behaviour == "silent") return ::pause();
  if (behaviour == "ignore-terminate") ::signal(SIGTERM, SIG_IGN);
  testing_support::FakeQmpServer server(
      socket, [&behaviour](testing_support::FakeQmpServer::Command& command) {
        if (command.name == "quit" && behaviour != "ignore-quit") ::_exit(0);
        return std::optional(testing_support::qmp_return());
      });
  return ::pause();
}

}  // namespace
}  // namespace pageferry

int main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "-fake-qemu")
    return pageferry::be_qemu(argv[0], argv[2], argv[3]);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
