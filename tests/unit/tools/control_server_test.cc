// The control socket of a running tool.
#include "tools/pageferry/control_server.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <atomic>
#include <cstring>

#include "fakes/scratch_directory.h"

namespace pageferry {
namespace {

using testing_support::ScratchDirectory;

class ControlServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto started = ControlServer::start(path(), [this]() -> Result<std::string> {
      ++aborts_;
      if (past_) return fail(Errc::invalid, "past the point of no return");
      return std::string("aborting");
    });
    ASSERT_TRUE(started) << started.error().message;
    server_ = std::move(*started);
  }
  std::string path() const { return scratch_.path() + "/control.sock"; }

  ScratchDirectory scratch_;
  std::atomic<int> aborts_{0};
  std::atomic<bool> past_{false};
  std::unique_ptr<ControlServer> server_;
};

TEST_F(ControlServerTest, StatusIsWhatWasSetLast) {
  server_->set_status({{"phase", "page-out"}});
  auto reply = ask_control_server(path(), {{"type", "status"}});
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ((*reply)["status"]["phase"], "page-out");
}

TEST_F(ControlServerTest, AbortAsksTheHandlerOnce) {
  auto reply = ask_control_server(path(), {{"type", "abort"}});
  ASSERT_TRUE(reply);
  EXPECT_EQ((*reply)["type"], "ok");
  EXPECT_EQ(aborts_, 1);
}

TEST_F(ControlServerTest, AbortThatComesTooLateSaysSo) {
  past_ = true;
  auto reply = ask_control_server(path(), {{"type", "abort"}});
  ASSERT_TRUE(reply);
  EXPECT_EQ((*reply)["type"], "error");
  EXPECT_EQ((*reply)["error-desc"], "past the point of no return");
}

TEST_F(ControlServerTest, UnknownRequestIsRefused) {
  auto reply = ask_control_server(path(), {{"type", "dance"}});
  ASSERT_TRUE(reply);
  EXPECT_EQ((*reply)["type"], "error");
}

TEST_F(ControlServerTest, ClientThatSaysRubbishDoesNotStopIt) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path().c_str(), sizeof address.sun_path - 1);
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::send(fd.get(), "rubbish\n", 8, MSG_NOSIGNAL), 8);
  EXPECT_TRUE(ask_control_server(path(), {{"type", "status"}}));
}

TEST_F(ControlServerTest, SocketIsForItsOwnerOnlyAndGoneAfterwards) {
  struct stat status {};
  ASSERT_EQ(::stat(path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
  server_.reset();
  EXPECT_NE(::stat(path().c_str(), &status), 0);
}

TEST(AskControlServer, NobodyThereIsAnError) {
  const ScratchDirectory scratch;
  auto reply = ask_control_server(scratch.path() + "/none.sock", {{"type", "status"}});
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, Errc::not_found);
}

}  // namespace
}  // namespace pageferry
