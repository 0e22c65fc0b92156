// FirecrackerSocket: one client, one message, one userfaultfd; everything else is refused in a line, in a bounded time.
#include "vmstate/firecracker_socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "fakes/scratch_directory.h"
#include "fakes/userfault_memory.h"
#include "fakes/waiting_child.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::HasSubstr;

constexpr std::uint64_t kSourcePages = 512;
constexpr Milliseconds kLong{20'000};  // the test does not wait for it
constexpr Milliseconds kShort{50};

std::string list_of(std::size_t regions) {
  std::string text = "[";
  for (std::size_t i = 0; i < regions; ++i) {
    text += fmt::format(
        "{}{{\"base_host_virt_addr\":{},\"size\":4096,\"offset\":{},\"page_size\":4096}}",
        i == 0 ? "" : ",", 0x7f0000000000 + i * 4096, i * 4096);
  }
  return text + "]";
}

class FirecrackerSocketTest : public testing::Test {
 protected:
  // The socket listens as soon as it is made, so that a client may come before take_client().
  void SetUp() override {
    auto listening = FirecrackerSocket::listen(path_);
    ASSERT_TRUE(listening) << listening.error().message;
    socket_.emplace(std::move(*listening));
    client_ = connect();
  }
  UniqueFd connect() {
    UniqueFd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.data(), path_.size());
    EXPECT_EQ(::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address),
              0);
    return client;
  }
  void send(const std::string& text, const std::vector<int>& descriptors) {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(16 * sizeof(int))> control{};
    iovec part{.iov_base = const_cast<char*>(text.data()), .iov_len = text.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (!descriptors.empty()) {
      message.msg_control = control.data();
      message.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
      cmsghdr* const header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
      std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size() * sizeof(int));
    }
    EXPECT_EQ(::sendmsg(client_.get(), &message, 0), static_cast<ssize_t>(text.size()));
  }
  Result<FirecrackerClient> take(Milliseconds patience = kLong) {
    return socket_->take_client(kSourcePages, patience, stop_);
  }
  void expect_refused(Errc code, const std::string& text, Milliseconds patience = kLong) {
    const auto taken = take(patience);
    ASSERT_FALSE(taken);
    EXPECT_EQ(taken.error().code, code) << taken.error().message;
    EXPECT_THAT(taken.error().message, HasSubstr(text));
    char byte = 0;
    EXPECT_EQ(::recv(client_.get(), &byte, 1, MSG_DONTWAIT), 0) << "the connection is closed";
  }

  ScratchDirectory directory_;
  std::string path_ = directory_.file("uffd.sock");
  CancelSignal stop_;
  std::optional<FirecrackerSocket> socket_;
  UniqueFd client_;
  UniqueFd userfault_ = open_ballooning_userfault();
};

TEST_F(FirecrackerSocketTest, AMessageWithAUserfaultfdIsTaken) {
  send(list_of(2), {userfault_.get()});
  const auto taken = take();
  ASSERT_TRUE(taken) << taken.error().message;
  EXPECT_EQ(taken->pid, ::getpid());
  EXPECT_TRUE(taken->process.valid());
  EXPECT_TRUE(taken->userfault.valid());
  EXPECT_EQ(taken->regions.addresses.size(), 2U);
  char byte = 0;
  EXPECT_LT(::recv(client_.get(), &byte, 1, MSG_DONTWAIT), 0) << "the connection stays open";
}

TEST_F(FirecrackerSocketTest, ALongMessageIsTakenWhole) {
  const std::string text = list_of(kFirecrackerRegionsMax);
  ASSERT_GT(text.size(), 20'000U);
  send(text, {userfault_.get()});
  const auto taken = take();
  ASSERT_TRUE(taken) << taken.error().message;
  EXPECT_EQ(taken->regions.addresses.size(), kFirecrackerRegionsMax);
}

TEST_F(FirecrackerSocketTest, AMessageInPiecesIsTakenWhole) {
  const std::string text = list_of(3);
  send(text.substr(0, 40), {userfault_.get()});
  send(text.substr(40), {});
  EXPECT_TRUE(take());
}

TEST_F(FirecrackerSocketTest, TheDescriptorMayComeLast) {
  const std::string text = list_of(3);
  send(text.substr(0, text.size() - 1), {});
  send(text.substr(text.size() - 1), {userfault_.get()});
  EXPECT_TRUE(take());
}

TEST_F(FirecrackerSocketTest, ThatIsMoreThanOneDescriptor) {
  send(list_of(1), {userfault_.get(), userfault_.get()});
  expect_refused(Errc::invalid, "sent 2 descriptors");
}

TEST_F(FirecrackerSocketTest, ThoseAreFarTooManyDescriptors) {
  send(list_of(1), std::vector<int>(16, userfault_.get()));
  expect_refused(Errc::invalid, "more than 8 descriptors");
}

TEST_F(FirecrackerSocketTest, NoDescriptorIsWaitedForAndThenRefused) {
  send(list_of(1), {});
  expect_refused(Errc::timeout, "0 descriptors within 50 ms", kShort);
}

TEST_F(FirecrackerSocketTest, SilenceIsRefused) {
  expect_refused(Errc::timeout, "sent 0 bytes and 0 descriptors within 50 ms", kShort);
}

TEST_F(FirecrackerSocketTest, GarbageIsRefusedAtOnce) {
  send("GET / HTTP/1.1\r\n\r\n", {userfault_.get()});
  expect_refused(Errc::invalid, "no JSON array");
}

TEST_F(FirecrackerSocketTest, GarbageInBracketsIsRefusedAtOnce) {
  send("[hello]", {userfault_.get()});
  expect_refused(Errc::invalid, "no JSON array");
}

TEST_F(FirecrackerSocketTest, WhatNeverEndsIsRefused) {
  const std::string endless = "[\"" + std::string(kFirecrackerMessageBytesMax, 'x');
  send(endless, {userfault_.get()});
  expect_refused(Errc::invalid, "more than 131072 bytes");
}

TEST_F(FirecrackerSocketTest, AnotherDescriptorIsRefusedByItsName) {
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  send(list_of(1), {null.get()});
  expect_refused(Errc::invalid, "'/dev/null' and no userfaultfd");
}

TEST_F(FirecrackerSocketTest, AUserfaultfdThatBlocksIsRefused) {
  const UniqueFd blocking(
      static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY)));
  ASSERT_TRUE(blocking.valid());
  send(list_of(1), {blocking.get()});
  expect_refused(Errc::invalid, "without O_NONBLOCK");
}

TEST_F(FirecrackerSocketTest, RegionsThatAreWrongAreRefused) {
  send("[{\"base_host_virt_addr\":4096,\"size\":8388608,\"offset\":0,\"page_size\":4096}]",
       {userfault_.get()});
  expect_refused(Errc::invalid, "more than the 2097152 bytes");
}

TEST_F(FirecrackerSocketTest, AClientThatGoesAwayIsGone) {
  send("[", {});
  ::shutdown(client_.get(), SHUT_WR);
  expect_refused(Errc::gone, "after 1 bytes and 0 descriptors");
}

TEST_F(FirecrackerSocketTest, WhoClosesWithoutAWordWasNoClient) {
  client_.reset();
  client_ = connect();
  send(list_of(1), {userfault_.get()});
  EXPECT_TRUE(take());
}

// The mode of the socket keeps others away already, unless somebody changes it.
TEST_F(FirecrackerSocketTest, AnotherUsersClientIsRefused) {
  if (::geteuid() != 0) return;  // only root can become somebody else
  client_.reset();
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0755), 0);
  ASSERT_EQ(::chmod(path_.c_str(), 0666), 0);
  const WaitingChild other([this] {
    constexpr uid_t kNobody = 65534;
    if (::setresuid(kNobody, kNobody, kNobody) != 0) return -1;
    return connect().release();
  });
  const auto taken = take();
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code, Errc::not_owner);
  EXPECT_THAT(taken.error().message, HasSubstr("is of user 65534, must be of user 0 or root"));
}

TEST_F(FirecrackerSocketTest, WaitingCanBeStopped) {
  stop_.cancel();
  EXPECT_EQ(take().error().code, Errc::canceled);
}

TEST_F(FirecrackerSocketTest, ThePathIsForItsOwnerAndGoesWithTheSocket) {
  struct stat status {};
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0600U);
  socket_.reset();
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(FirecrackerSocketTest, ASocketThatIsAliveIsNotTakenOver) {
  const auto second = FirecrackerSocket::listen(path_);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::exists);
  EXPECT_TRUE(std::filesystem::exists(path_));
}

TEST_F(FirecrackerSocketTest, ADeadSocketIsReplacedAndAFileIsNot) {
  const std::string dead = directory_.file("dead.sock");
  {
    const UniqueFd left(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, dead.data(), dead.size());
    ASSERT_EQ(::bind(left.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  }
  EXPECT_TRUE(FirecrackerSocket::listen(dead));
  const std::string plain = directory_.file("plain");
  std::ofstream(plain) << "kept";
  EXPECT_EQ(FirecrackerSocket::listen(plain).error().code, Errc::exists);
  EXPECT_TRUE(std::filesystem::exists(plain));
  EXPECT_EQ(FirecrackerSocket::listen(directory_.file(std::string(200, 'x'))).error().code,
            Errc::invalid);
}

}  // namespace
}  // namespace pageferry
