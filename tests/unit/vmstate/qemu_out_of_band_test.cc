// QemuOutOfBand: a connection is left in a QEMU and found there again. In the place of that QEMU stands a fake monitor when it is left,
// and this very process with a socket pair when it is taken.
#include "vmstate/qemu_out_of_band.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include <array>
#include <thread>

#include "fakes/expectations.h"
#include "fakes/fake_qmp_server.h"
#include "fakes/scratch_directory.h"
#include "vmstate/qemu_process.h"

namespace pageferry {
namespace {

using namespace testing_support;
using nlohmann::json;
using testing::HasSubstr;

std::uint64_t inode_of(const UniqueFd& fd) {
  struct stat status {};
  EXPECT_EQ(::fstat(fd.get(), &status), 0);
  return status.st_ino;
}

// --- take() and execute() ---

class TakenConnection : public testing::Test {
 protected:
  TakenConnection() {
    // For where Yama lets only parents trace.
    ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    std::array<int, 2> ends{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    kept_.reset(ends[0]);
    monitor_.reset(ends[1]);
  }
  ~TakenConnection() override { ::shutdown(monitor_.get(), SHUT_RDWR); }

  Result<QemuOutOfBand> take() const {
    return QemuOutOfBand::take(identify_process(::getpid()).value(), inode_of(kept_));
  }
  void say(const std::string& text) const {
    ASSERT_EQ(::send(monitor_.get(), text.data(), text.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
  }
  // The monitor's end: answers one request with the reply, under the request's id.
  void answer(json reply) {
    thread_ = std::jthread([this, reply = std::move(reply)]() mutable {
      std::array<char, 4096> line{};
      const ssize_t got = ::recv(monitor_.get(), line.data(), line.size(), 0);
      if (got <= 0) return;
      request_ = json::parse(std::string(line.data(), static_cast<std::size_t>(got)));
      reply["id"] = request_["id"];
      say(reply.dump() + "\r\n");
    });
  }
  void wait_answered() { thread_.join(); }

  UniqueFd kept_;
  UniqueFd monitor_;
  json request_;
  std::jthread thread_;
};

TEST_F(TakenConnection, SendsOutOfBand) {
  auto taken = take();
  ASSERT_TRUE(taken) << taken.error().message;
  answer(qmp_return({{"done", 1}}));
  const auto reply = taken->execute("migrate-recover", {{"uri", "unix:/a"}}, soon());
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(*reply, json({{"done", 1}}));
  wait_answered();
  EXPECT_EQ(request_["exec-oob"], "migrate-recover");
  EXPECT_EQ(request_["arguments"], json({{"uri", "unix:/a"}}));
  EXPECT_FALSE(request_.contains("execute"));
}

TEST_F(TakenConnection, WhatAnEarlierPagerLeftUnreadIsSkipped) {
  say("half of a line\"}\r\n{\"event\": \"STOP\"}\r\n{\"return\": {}, \"id\": \"another\"}\r\n");
  auto taken = take();
  ASSERT_TRUE(taken) << taken.error().message;
  answer(qmp_return({{"mine", true}}));
  EXPECT_EQ(taken->execute("migrate-pause", json::object(), soon()).value(),
            json({{"mine", true}}));
}

TEST_F(TakenConnection, ARefusalIsTheVmmsAndTheConnectionGoesOn) {
  auto taken = take();
  ASSERT_TRUE(taken) << taken.error().message;
  answer(qmp_error("only when postcopy is paused"));
  const auto refused = taken->execute("migrate-recover", json::object(), soon());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::vmm);
  EXPECT_THAT(refused.error().message, HasSubstr("only when postcopy is paused"));
  wait_answered();
  answer(qmp_return());
  EXPECT_TRUE(taken->execute("migrate-pause", json::object(), soon()));
}

TEST_F(TakenConnection, MayBeTakenAgainWhenThePagerThatTookItIsGone) {
  for (int i = 0; i < 3; ++i) {
    auto taken = take();
    ASSERT_TRUE(taken) << taken.error().message;
    answer(qmp_return());
    EXPECT_TRUE(taken->execute("migrate-recover", json::object(), soon()));
    wait_answered();
  }
}

TEST_F(TakenConnection, SilenceIsATimeoutAndAnEndIsGone) {
  auto taken = take();
  ASSERT_TRUE(taken) << taken.error().message;
  EXPECT_EQ(
      taken
          ->execute("migrate-pause", json::object(), Deadline::after(real_clock(), Milliseconds(1)))
          .error()
          .code,
      Errc::timeout);
  ::shutdown(monitor_.get(), SHUT_WR);
  EXPECT_EQ(taken->execute("migrate-pause", json::object(), soon()).error().code, Errc::gone);
}

TEST_F(TakenConnection, ThatWasClosedIsNotFound) {
  const std::uint64_t inode = inode_of(kept_);
  kept_.reset();
  const auto taken = QemuOutOfBand::take(identify_process(::getpid()).value(), inode);
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code, Errc::not_found);
}

TEST_F(TakenConnection, OfAProcessThatHasEndedIsGone) {
  ProcessIdentity other = identify_process(::getpid()).value();
  ++other.start_ticks;
  EXPECT_EQ(QemuOutOfBand::take(other, inode_of(kept_)).error().code, Errc::gone);
}

// --- leave() and remove() ---

class LeftConnection : public testing::Test {
 protected:
  std::optional<json> handle(FakeQmpServer::Command& command) {
    names_.push_back(command.name + " " + command.arguments.value("fdname", ""));
    if (!command.fds.empty()) given_ = std::move(command.fds.front());
    return reply_;
  }

  ScratchDirectory directory_;
  const std::string path_ = directory_.file("oob.sock");
  std::vector<std::string> names_;
  UniqueFd given_;
  json reply_ = qmp_return();
  FakeQmpServer server_{directory_.file("qmp.sock"),
                        [this](FakeQmpServer::Command& command) { return handle(command); }};
  std::unique_ptr<QmpClient> qmp_ = QmpClient::connect(directory_.file("qmp.sock"), soon()).value();
};

TEST_F(LeftConnection, IsTheOneThatIsGivenToQemu) {
  const FakeQmpServer out_of_band(path_, [](auto&) { return qmp_return(); });
  const auto inode = QemuOutOfBand::leave(*qmp_, path_, soon());
  ASSERT_TRUE(inode) << inode.error().message;
  EXPECT_THAT(names_, testing::ElementsAre("getfd pageferry-oob"));
  EXPECT_EQ(*inode, inode_of(given_));
}

TEST_F(LeftConnection, IsNoneWhereThatMonitorIsNone) {
  EXPECT_EQ(QemuOutOfBand::leave(*qmp_, path_, soon()).error().code, Errc::not_found);
  EXPECT_TRUE(names_.empty());
}

TEST_F(LeftConnection, IsRemovedByItsNameAndThatNoneIsThereIsNoError) {
  EXPECT_TRUE(QemuOutOfBand::remove(*qmp_, soon()));
  reply_ = qmp_error("File descriptor named 'pageferry-oob' not found");
  EXPECT_TRUE(QemuOutOfBand::remove(*qmp_, soon()));
  EXPECT_THAT(names_, testing::ElementsAre("closefd pageferry-oob", "closefd pageferry-oob"));
}

}  // namespace
}  // namespace pageferry
