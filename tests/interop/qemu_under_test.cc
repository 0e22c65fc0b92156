#include "interop/qemu_under_test.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "transport/os/fd.h"

namespace pageferry::testing_support {
namespace {

constexpr Seconds kStartBound{60};

std::string cache_directory() {
  const char* named = std::getenv("PAGEFERRY_CACHE");
  if (named != nullptr && *named != '\0') return named;
  const char* home = std::getenv("HOME");
  return std::string(home != nullptr ? home : "/root") + "/.cache/pageferry";
}

void prepare_once() {
  static const int result = std::system(PAGEFERRY_SOURCE_DIRECTORY "/tests/guest/prepare");
  ASSERT_EQ(result, 0) << "tests/guest/prepare failed: see its words above";
}

std::string machine_type(const std::string& version) {
  return version == "10" ? "pc-q35-10.0" : "pc-q35-7.2";
}

}  // namespace

std::string QemuUnderTest::executable(const std::string& version) {
  prepare_once();
  return version == "10" ? cache_directory() + "/qemu10/qemu-system-x86_64"
                         : "/usr/bin/qemu-system-x86_64";
}

unsigned long QemuUnderTest::memory_kib(const QemuSetup& setup) {
  constexpr unsigned kOddKib = 8;
  return setup.memory_mib * 1024UL + (setup.version == "10" ? 0 : kOddKib);
}

QemuUnderTest::QemuUnderTest(const QemuSetup& setup) {
  std::vector<std::string> arguments = {
      executable(setup.version),
      "-accel",
      "tcg",
      "-machine",
      machine_type(setup.version) + setup.machine_options,
      "-nodefaults",
      "-no-user-config",
      "-display",
      "none",
      "-smp",
      "1",
      "-qmp",
      "unix:" + directory_.file("qmp") + ",server=on,wait=off",
      "-qmp",
      "unix:" + directory_.file("watch") + ",server=on,wait=off",
      "-chardev",
      "socket,id=serial0,path=" + directory_.file("serial") +
          ",server=on,wait=off,logfile=" + directory_.file("serial.log"),
      "-serial",
      "chardev:serial0"};
  if (setup.memory.empty()) {
    arguments.insert(arguments.end(), {"-m", std::to_string(memory_kib(setup)) + "K"});
  } else {
    arguments.insert(arguments.end(), setup.memory.begin(), setup.memory.end());
  }
  if (setup.boots_guest) {
    const std::string parameters =
        "console=ttyS0 quiet loglevel=4 nokaslr mitigations=off no_timer_check tsc=reliable "
        "random.trust_cpu=on audit=0 "
        "selinux=0 apparmor=0 panic=2 pf.fill_mib=" +
        std::to_string(setup.fill_mib) + " pf.dirty_mib_s=" + std::to_string(setup.dirty_mib_s) +
        " pf.dirty_ws_mib=" + std::to_string(setup.dirty_ws_mib) + " pf.read_mib_s=5";
    arguments.insert(arguments.end(),
                     {"-kernel", cache_directory() + "/guest/vmlinuz", "-initrd",
                      cache_directory() + "/guest/initramfs.cpio.gz", "-append", parameters});
  }
  arguments.insert(arguments.end(), setup.extra.begin(), setup.extra.end());
  spawn(arguments);
  qmp_ = connect("qmp");
  watch_ = connect("watch");
}

QemuUnderTest::~QemuUnderTest() {
  qmp_.reset();
  watch_.reset();
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
}

void QemuUnderTest::spawn(const std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const std::string log = directory_.file("qemu.log");
  pid_ = ::fork();
  if (pid_ != 0) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  ::dup2(out, 1);
  ::dup2(out, 2);
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

std::unique_ptr<QmpClient> QemuUnderTest::connect(const std::string& name) const {
  const auto deadline = Deadline::after(clock_, kStartBound);
  while (!deadline.passed()) {
    auto client = QmpClient::connect(directory_.file(name), deadline);
    if (client) return std::move(*client);
    int status = 0;
    if (::waitpid(pid_, &status, WNOHANG) == pid_) break;
    ::poll(nullptr, 0, 10);  // QEMU has not made its socket yet; there is nothing to wait on
  }
  std::ifstream log(directory_.file("qemu.log"));
  ADD_FAILURE() << "QEMU did not start: " << log.rdbuf();
  std::abort();
}

std::string QemuUnderTest::run_state() {
  auto status = watch_->execute("query-status", nlohmann::json::object(),
                                Deadline::after(clock_, kStartBound));
  if (!status) return status.error().message;
  return status->value("status", "");
}

bool QemuUnderTest::reaches_run_state(const std::string& state, Seconds bound) {
  const auto deadline = Deadline::after(clock_, bound);
  while (run_state() != state) {
    if (deadline.passed()) return false;
  }
  return true;
}

std::string QemuUnderTest::serial() const {
  std::ifstream file(directory_.file("serial.log"), std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

bool QemuUnderTest::wait_for_serial(const std::string& text, std::size_t from,
                                    Seconds bound) const {
  UniqueFd changes(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  ::inotify_add_watch(changes.get(), directory_.file("serial.log").c_str(), IN_MODIFY);
  const auto deadline = Deadline::after(clock_, bound);
  while (true) {
    if (serial().find(text, from) != std::string::npos) return true;
    if (deadline.passed()) return false;
    pollfd waiting{.fd = changes.get(), .events = POLLIN, .revents = 0};
    ::poll(&waiting, 1, deadline.poll_timeout_ms());
    std::vector<char> discarded(4096);
    while (::read(changes.get(), discarded.data(), discarded.size()) > 0) {
    }
  }
}

void QemuUnderTest::command(char letter) const {
  const UniqueFd line(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  directory_.file("serial").copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(::connect(line.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::send(line.get(), &letter, 1, MSG_NOSIGNAL), 1);
}

unsigned long QemuUnderTest::last_heartbeat() const {
  const std::string text = serial();
  const auto at = text.rfind("\nH ");
  return at == std::string::npos ? 0 : std::strtoul(text.c_str() + at + 3, nullptr, 10);
}

}  // namespace pageferry::testing_support
