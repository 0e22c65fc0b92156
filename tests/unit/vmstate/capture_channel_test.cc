// Goal: SHUT(0) and closing exclude each other, whoever comes first; bytes and the end of the stream arrive.
// Method: a socket pair with the test at QEMU's end; two threads racing many times.
#include "vmstate/capture_channel.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <latch>
#include <thread>

namespace pageferry {
namespace {

struct Pair {
  Pair() {
    auto made = CaptureChannel::create();
    EXPECT_TRUE(made.has_value());
    channel = std::move(*made);
    vmm.reset(::fcntl(channel->vmm_end(), F_DUPFD_CLOEXEC, 0));
    channel->close_vmm_end();
  }
  // What QEMU hears: bytes until the end.
  std::vector<unsigned char> heard() {
    std::vector<unsigned char> all(64);
    const ssize_t got = ::recv(vmm.get(), all.data(), all.size(), MSG_DONTWAIT);
    all.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
    return all;
  }
  std::unique_ptr<CaptureChannel> channel;
  UniqueFd vmm;
};

TEST(CaptureChannelTest, CommitSendsShutZeroOnce) {
  Pair pair;
  EXPECT_TRUE(pair.channel->commit().has_value());
  EXPECT_FALSE(pair.channel->commit().has_value());
  EXPECT_EQ(pair.heard(), (std::vector<unsigned char>{0, 1, 0, 4, 0, 0, 0, 0}));
}

TEST(CaptureChannelTest, CloseAfterCommitDoesNothing) {
  Pair pair;
  ASSERT_TRUE(pair.channel->commit().has_value());
  EXPECT_FALSE(pair.channel->close());
  EXPECT_FALSE(pair.channel->closed());
}

TEST(CaptureChannelTest, CommitAfterCloseIsCanceledAndSendsNothing) {
  Pair pair;
  EXPECT_TRUE(pair.channel->close());
  auto result = pair.channel->commit();
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::canceled);
  EXPECT_TRUE(pair.heard().empty());
}

TEST(CaptureChannelTest, CloseMayBeRepeated) {
  Pair pair;
  EXPECT_TRUE(pair.channel->close());
  EXPECT_TRUE(pair.channel->close());
}

TEST(CaptureChannelTest, ExactlyOneOfCommitAndCloseWins) {
  for (int round = 0; round < 500; ++round) {
    Pair pair;
    std::latch both(2);
    std::atomic<bool> closed{false};
    std::thread closer([&] {
      both.arrive_and_wait();
      closed = pair.channel->close();
    });
    both.arrive_and_wait();
    const bool committed = pair.channel->commit().has_value();
    closer.join();
    ASSERT_NE(committed, closed.load()) << "round " << round;
    ASSERT_EQ(pair.heard().size(), committed ? 8U : 0U) << "round " << round;
  }
}

TEST(CaptureChannelTest, CloseWakesAReader) {
  Pair pair;
  std::thread closer([&] { pair.channel->close(); });
  std::array<std::byte, 16> buffer{};
  auto got = pair.channel->receive(buffer);
  closer.join();
  ASSERT_TRUE(got.has_value());
  EXPECT_EQ(*got, 0U);
}

TEST(CaptureChannelTest, ReceiveSeesBytesThenTheEnd) {
  Pair pair;
  ASSERT_EQ(::send(pair.vmm.get(), "abc", 3, 0), 3);
  pair.vmm.reset();
  std::array<std::byte, 16> buffer{};
  EXPECT_EQ(*pair.channel->receive(buffer), 3U);
  EXPECT_EQ(*pair.channel->receive(buffer), 0U);
}

}  // namespace
}  // namespace pageferry
