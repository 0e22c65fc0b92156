// Host forwards out of HMP's table, and back in.
#include "vmstate/qemu_host_forwards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fakes/fake_qmp_server.h"
#include "fakes/scratch_directory.h"

namespace pageferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::string_view kTable =
    "Hub -1 (n0):\r\n"
    "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
    "  TCP[ESTABLISHED]   12       10.0.2.15 40000      192.0.2.1   443     0     0\r\n"
    "  TCP[HOST_FORWARD]  16       127.0.0.1 12222       10.0.2.15    22     0     0\r\n"
    "Hub 0 (#net052):\r\n"
    "  UDP[HOST_FORWARD]  17               *  5353       10.0.2.15    53     0     0\r\n";

const HostForward kSsh = {"n0", "tcp", "127.0.0.1", 12222, "10.0.2.15", 22};
const HostForward kDns = {"#net052", "udp", "", 5353, "10.0.2.15", 53};

TEST(HostForwardsTest, AreReadForEachNetwork) {
  EXPECT_THAT(parse_host_forwards(kTable), ElementsAre(kSsh, kDns));
}

TEST(HostForwardsTest, ForeignLinesAreSkipped) {
  EXPECT_THAT(parse_host_forwards(
                  "nothing\nTCP[HOST_FORWARD] 1 2\n  TCP[HOST_FORWARD]  16 a 99999999 b 22 0 0\n"),
              IsEmpty());
}

TEST(HostForwardsTest, AreAddedOneByOneAndTheFirstFailureIsTold) {
  testing_support::ScratchDirectory directory;
  std::vector<std::string> commands;
  testing_support::FakeQmpServer server(
      directory.file("q"), [&commands](testing_support::FakeQmpServer::Command& command) {
        commands.push_back(command.arguments.value("command-line", ""));
        return std::optional(testing_support::qmp_return(
            commands.size() == 1 ? "could not set up host forwarding rule\r\n" : ""));
      });
  const MonotonicClock clock;
  const auto qmp = QmpClient::connect(directory.file("q"), Deadline::after(clock, Seconds(20)));
  ASSERT_TRUE(qmp) << qmp.error().message;
  const auto added = add_host_forwards(**qmp, {kSsh, kDns}, Deadline::after(clock, Seconds(20)));
  ASSERT_FALSE(added);
  EXPECT_THAT(added.error().message,
              HasSubstr("tcp:127.0.0.1:12222-10.0.2.15:22: could not set up"));
  EXPECT_THAT(commands, ElementsAre("hostfwd_add n0 tcp:127.0.0.1:12222-10.0.2.15:22",
                                    "hostfwd_add #net052 udp::5353-10.0.2.15:53"));
}

}  // namespace
}  // namespace pageferry
