// Finding monitors on a QEMU's command line, and what QEMU's run states mean to the rules.
#include "tools/pageferry/vmm_look.h"

#include <gtest/gtest.h>

namespace pageferry {
namespace {

using Sockets = std::vector<std::string>;

TEST(MonitorSockets, QmpOptionIsFound) {
  EXPECT_EQ(monitor_sockets_of({"qemu", "-qmp", "unix:/run/a.sock,server=on,wait=off"}, "/"),
            Sockets{"/run/a.sock"});
}

TEST(MonitorSockets, RelativePathIsResolvedAgainstItsDirectory) {
  EXPECT_EQ(monitor_sockets_of({"qemu", "-qmp", "unix:a.sock,server"}, "/var/vm"),
            Sockets{"/var/vm/a.sock"});
}

TEST(MonitorSockets, MonOnAChardevIsFoundWhenItIsAControlMonitor) {
  EXPECT_EQ(monitor_sockets_of({"qemu", "-chardev", "socket,id=m,path=/run/m.sock,server=on",
                                "-mon", "chardev=m,mode=control"},
                               "/"),
            Sockets{"/run/m.sock"});
}

TEST(MonitorSockets, HumanMonitorIsNot) {
  EXPECT_TRUE(monitor_sockets_of({"qemu", "-chardev", "socket,id=m,path=/run/m.sock,server=on",
                                  "-mon", "chardev=m,mode=readline"},
                                 "/")
                  .empty());
}

TEST(MonitorSockets, OursForOutOfBandCommandsIsNot) {
  EXPECT_TRUE(monitor_sockets_of({"qemu", "-chardev", "socket,id=pageferry-oob,path=/run/o.sock",
                                  "-mon", "chardev=pageferry-oob,mode=control"},
                                 "/")
                  .empty());
}

TEST(MonitorSockets, TcpMonitorIsNot) {
  EXPECT_TRUE(monitor_sockets_of({"qemu", "-qmp", "tcp:localhost:4444,server"}, "/").empty());
}

TEST(VmmStateOf, WordsOfQemuMapToTheRules) {
  EXPECT_EQ(vmm_state_of("inmigrate"), VmmState::incoming);
  EXPECT_EQ(vmm_state_of("finish-migrate"), VmmState::finishing);
  EXPECT_EQ(vmm_state_of("postmigrate"), VmmState::post_migrate);
  EXPECT_EQ(vmm_state_of("paused"), VmmState::paused);
  EXPECT_EQ(vmm_state_of("running"), VmmState::running);
}

TEST(VmmStateOf, GuestThatStoppedItselfCountsAsRunningSoThatNothingContinuesIt) {
  EXPECT_EQ(vmm_state_of("io-error"), VmmState::running);
  EXPECT_EQ(vmm_state_of("guest-panicked"), VmmState::running);
  EXPECT_EQ(vmm_state_of("shutdown"), VmmState::running);
}

TEST(LookAtVmm, ProcessThatIsGoneIsNone) {
  const MonotonicClock clock;
  auto self = this_process();
  ASSERT_TRUE(self);
  ProcessIdentity other = *self;
  other.start_ticks += 1;  // the pid lives, the process that had it does not
  auto look = look_at_vmm(other, "", clock);
  ASSERT_TRUE(look) << look.error().message;
  EXPECT_EQ(look->view.state, VmmState::none);
}

}  // namespace
}  // namespace pageferry
