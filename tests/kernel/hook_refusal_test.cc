// What the hook refuses, one behaviour each: configurations that are wrong, requests at the wrong time, peers that do not keep the protocol.
// After each the VMM is unharmed: its guest runs, and a pager that is right is served.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>

#include "fakes/hook_vmm.h"
#include "vmstate/hook_packet.h"
#include "vmstate/local_socket.h"
#include "vmstate/sealed_memory.h"

namespace pageferry {
namespace {

using namespace testing_support;
using hook_protocol::Request;
using hook_protocol::Type;
using testing::HasSubstr;
using Role = HookClient::Role;

class HookConfigTest : public testing::Test {
 protected:
  void expect_start_fails(int number, const std::string& words) {
    EXPECT_EQ(vmm_.start(), number) << vmm_.error();
    EXPECT_THAT(vmm_.error(), HasSubstr(words));
    EXPECT_EQ(vmm_.hook(), nullptr);
  }
  HookVmm vmm_;
};

TEST_F(HookConfigTest, NothingAtAll) {
  pageferry_hook* hook = nullptr;
  EXPECT_EQ(pageferry_hook_start(nullptr, &hook, nullptr, 0), -EINVAL);
  EXPECT_EQ(pageferry_hook_stop(nullptr), -EINVAL);
  EXPECT_EQ(pageferry_hook_mark_dirty(nullptr, 0, 1), -EINVAL);
}
TEST_F(HookConfigTest, AStructureThatIsTooShort) {
  vmm_.config().size_bytes = 16;
  expect_start_fails(-EINVAL, "config: size_bytes is 16");
}
TEST_F(HookConfigTest, AnotherAbi) {
  vmm_.config().abi_version = 2;
  expect_start_fails(-EINVAL, "abi_version is 2");
}
TEST_F(HookConfigTest, NoPauseCallback) {
  vmm_.callbacks().pause = nullptr;
  expect_start_fails(-EINVAL, "callbacks.pause is NULL");
}
TEST_F(HookConfigTest, AnIncomingVmmThatCannotLoad) {
  vmm_.config().incoming = 1;
  vmm_.callbacks().load_state = nullptr;
  expect_start_fails(-EINVAL, "load_state is NULL");
}
TEST_F(HookConfigTest, SlotsThatOverlapInTheGuest) {
  vmm_.slot(1).guest_address = kPageSizeBytes;
  expect_start_fails(-EINVAL, "'ram' and 'bios' overlap at guest address 0x1000");
}
TEST_F(HookConfigTest, SlotsThatOverlapInTheVmm) {
  vmm_.slot(1).host_address = vmm_.page(1);
  expect_start_fails(-EINVAL, "overlap at host address");
}
TEST_F(HookConfigTest, TwoSlotsOfOneName) {
  vmm_.slot(1).name = "ram";
  expect_start_fails(-EINVAL, "'ram' is named twice");
}
TEST_F(HookConfigTest, AnAddressBetweenPages) {
  vmm_.slot(0).guest_address = 1;
  expect_start_fails(-EINVAL, "guest address 0x1");
}
TEST_F(HookConfigTest, ADescriptorThatIsNoMemory) {
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  vmm_.slot(0).memory_fd = null.get();
  expect_start_fails(-EINVAL, "no memfd, hugetlbfs or tmpfs file");
}
TEST_F(HookConfigTest, ADescriptorThatIsClosed) {
  vmm_.slot(0).memory_fd = 999;
  expect_start_fails(-EINVAL, "memory_fd 999");
}
TEST_F(HookConfigTest, AFileThatIsNotMappedThere) {
  vmm_.slot(0).memory_fd = vmm_.slot(1).memory_fd;
  vmm_.slot(0).size_bytes = vmm_.slot(1).size_bytes;
  expect_start_fails(-EINVAL, "not memory_fd");
}
TEST_F(HookConfigTest, AFileThatIsTooShort) {
  vmm_.slot(0).memory_fd_offset = kPageSizeBytes;
  expect_start_fails(-EINVAL, "its file has");
}
TEST_F(HookConfigTest, SharedMemoryWithoutItsFile) {
  vmm_.slot(0).memory_fd = -1;
  expect_start_fails(-EINVAL, "memory_fd is -1");
}
TEST_F(HookConfigTest, MemoryThatIsNotMapped) {
  HookVmm other(Backing::anonymous);
  other.slot(0).host_address = reinterpret_cast<void*>(0x10000);
  EXPECT_EQ(other.start(), -EINVAL);
  EXPECT_THAT(other.error(), HasSubstr("nothing is mapped at 0x10000"));
}
TEST_F(HookConfigTest, MemoryOfAnIncomingVmmThatWasTouched) {
  vmm_.config().incoming = 1;
  vmm_.write(7, std::byte{1});
  expect_start_fails(-EINVAL, "there is a page at 0x7000 already");
}
TEST_F(HookConfigTest, MemoryOfAnIncomingVmmThatWasReserved) {
  vmm_.config().incoming = 1;
  ASSERT_EQ(::fallocate(vmm_.slot(0).memory_fd, 0, 0, kPageSizeBytes), 0);
  expect_start_fails(-EINVAL, "must be untouched");
}
TEST_F(HookConfigTest, ASourceWithoutItsCallback) {
  vmm_.config().dirty_source = PAGEFERRY_DIRTY_VMM;
  expect_start_fails(-EINVAL, "fetch_dirty is NULL");
}
TEST_F(HookConfigTest, ASocketThatSomebodyListensOn) {
  vmm_.start_well();
  HookVmm second;
  second.config().socket_path = vmm_.path().c_str();
  EXPECT_EQ(second.start(), -EADDRINUSE);
  EXPECT_THAT(second.error(), HasSubstr("somebody listens on"));
}
TEST_F(HookConfigTest, AFileAtTheSocketsPathIsLeftAlone) {
  std::ofstream(vmm_.path()) << "something";
  expect_start_fails(-EADDRINUSE, "is no socket");
}
TEST_F(HookConfigTest, ADeadSocketIsReplacedAndOnlyThisUserReachesTheNewOne) {
  auto dead = listen_at(vmm_.path(), SOCK_SEQPACKET, 1);
  ASSERT_TRUE(dead);
  dead->reset();
  vmm_.start_well();
  struct stat status {};
  ASSERT_EQ(::lstat(vmm_.path().c_str(), &status), 0);
  EXPECT_TRUE(S_ISSOCK(status.st_mode));
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
  EXPECT_EQ(vmm_.stop(), 0);
  EXPECT_NE(::lstat(vmm_.path().c_str(), &status), 0) << "it is removed at the end";
}

// A peer that speaks packets, right or wrong.
class HookPeerTest : public testing::Test {
 protected:
  void SetUp() override { vmm_.start_well(); }
  void TearDown() override {
    raw_.reset();
    EXPECT_TRUE(vmm_.runs());
    const auto mover = vmm_.connect(Role::mover);
    ASSERT_NE(mover, nullptr);
    EXPECT_TRUE(mover->pause(vmm_.soon()));
    EXPECT_TRUE(mover->give_up());
  }
  UniqueFd connect() {
    auto fd = connect_to(vmm_.path(), SOCK_SEQPACKET, vmm_.soon());
    EXPECT_TRUE(fd);
    return std::move(*fd);
  }
  void send(std::span<const std::byte> bytes, int descriptor = -1) {
    EXPECT_TRUE(send_hook_packet(raw_.get(), bytes, descriptor));
  }
  void send(const Request& request, int descriptor = -1) {
    send(hook_protocol::encode(request), descriptor);
  }
  Result<HookPacket> received() {
    pollfd entry{.fd = raw_.get(), .events = POLLIN, .revents = 0};
    EXPECT_EQ(::poll(&entry, 1, 10'000), 1) << "no answer";
    return receive_hook_packet(raw_.get());
  }
  void expect_error(Errc code, const std::string& words) {
    const auto packet = received();
    ASSERT_TRUE(packet) << packet.error().message;
    const auto reply = hook_protocol::decode_reply({.type = Type::get_state, .serial = 0},
                                                   with_serial_0(packet->bytes));
    ASSERT_FALSE(reply);
    EXPECT_EQ(reply.error().code, code) << reply.error().message;
    EXPECT_THAT(reply.error().message, HasSubstr(words));
  }
  static std::vector<std::byte> with_serial_0(std::vector<std::byte> packet) {
    std::fill(packet.begin() + 12, packet.begin() + 16, std::byte{0});
    return packet;
  }
  void expect_closed() {
    const auto packet = received();
    ASSERT_FALSE(packet);
    EXPECT_EQ(packet.error().code, Errc::gone) << packet.error().message;
  }
  static Request hello(Role role) {
    return {.type = Type::hello, .serial = 1, .version_min = 1, .version_max = 1, .role = role};
  }
  void greet(Role role) {
    send(hello(role));
    ASSERT_TRUE(received());
  }
  HookVmm vmm_;
  UniqueFd raw_;
};

TEST_F(HookPeerTest, ARequestBeforeHello) {
  raw_ = connect();
  send({.type = Type::pause, .serial = 1});
  expect_error(Errc::invalid, "hello comes first");
  expect_closed();
}
TEST_F(HookPeerTest, HelloTwice) {
  raw_ = connect();
  greet(Role::mover);
  send(hello(Role::mover));
  expect_error(Errc::invalid, "and once");
  expect_closed();
}
TEST_F(HookPeerTest, AVersionThatIsTooNew) {
  raw_ = connect();
  Request request = hello(Role::mover);
  request.version_min = 2;
  request.version_max = 9;
  send(request);
  expect_error(Errc::version, "versions 2 to 9, the hook 1");
  expect_closed();
}
TEST_F(HookPeerTest, APacketThatIsNone) {
  raw_ = connect();
  send(std::vector<std::byte>(100, std::byte{0x41}));
  expect_error(Errc::invalid, "begins with 0x41414141");
  expect_closed();
}
TEST_F(HookPeerTest, APacketThatIsTooLong) {
  raw_ = connect();
  send(std::vector<std::byte>(hook_protocol::kPacketBytesMax + 1));
  expect_error(Errc::invalid, "more than 65536 bytes");
  expect_closed();
}
TEST_F(HookPeerTest, AnEmptyPacket) {
  raw_ = connect();
  send(std::vector<std::byte>());
  expect_closed();
}
TEST_F(HookPeerTest, ALengthThatIsALie) {
  raw_ = connect();
  auto packet = hook_protocol::encode(hello(Role::mover));
  packet.pop_back();
  send(packet);
  expect_error(Errc::invalid, "says that its payload has");
}
TEST_F(HookPeerTest, ADescriptorThatNobodyAskedFor) {
  raw_ = connect();
  greet(Role::mover);
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  send({.type = Type::pause, .serial = 2}, null.get());
  expect_error(Errc::invalid, "came with 1 descriptors");
  expect_closed();
}
TEST_F(HookPeerTest, ProgressThatIsNoMemory) {
  raw_ = connect();
  greet(Role::mover);
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  send({.type = Type::share_progress, .serial = 2}, null.get());
  expect_error(Errc::invalid, "the progress is no memory file");
}
TEST_F(HookPeerTest, ProgressThatMayShrink) {
  raw_ = connect();
  greet(Role::mover);
  const UniqueFd memory(::memfd_create("p", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(memory.get(), static_cast<off_t>(kHookProgressBytes)), 0);
  send({.type = Type::share_progress, .serial = 2}, memory.get());
  expect_error(Errc::invalid, "has the seals");
}
TEST_F(HookPeerTest, ASlotThatIsNotThere) {
  raw_ = connect();
  greet(Role::observer);
  send({.type = Type::get_slot, .serial = 2, .slot = 2});
  expect_error(Errc::invalid, "slot 2, there are 2");
}
TEST_F(HookPeerTest, AnObserverMayNotPause) {
  raw_ = connect();
  greet(Role::observer);
  send({.type = Type::pause, .serial = 2});
  expect_error(Errc::vmm, "only a mover");
}
TEST_F(HookPeerTest, ASecondMover) {
  raw_ = connect();
  greet(Role::mover);
  const auto second = HookClient::connect(vmm_.path(), Role::mover, vmm_.soon());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::busy);
  EXPECT_THAT(second.error().message, HasSubstr("is this VM's mover already"));
  EXPECT_NE(vmm_.connect(Role::observer), nullptr) << "who only looks may";
}
TEST_F(HookPeerTest, SilenceDoesNotKeepOthersOut) {
  raw_ = connect();
  EXPECT_NE(vmm_.connect(Role::mover), nullptr);
}
TEST_F(HookPeerTest, AFloodOfConnectionsDoesNotKeepOthersOut) {
  std::vector<UniqueFd> flood;
  for (int i = 0; i < 300; ++i) flood.push_back(connect());
  raw_ = connect();
  greet(Role::observer);  // at once: later, those before it have been silent for too long
  const auto mover = vmm_.connect(Role::mover);
  ASSERT_NE(mover, nullptr);
  for (int i = 0; i < 300; ++i) flood.push_back(connect());
  EXPECT_TRUE(mover->pause(vmm_.soon())) << "and does not throw out one who said hello";
  EXPECT_TRUE(mover->give_up());
  EXPECT_TRUE(vmm_.was_called("resume"));
}
TEST_F(HookPeerTest, RequestsThatDoNotWaitForTheirAnswersAreServedOneByOne) {
  raw_ = connect();
  greet(Role::mover);
  send({.type = Type::pause, .serial = 2});
  send({.type = Type::save_state, .serial = 3});
  send({.type = Type::get_state, .serial = 4});
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(received());
  EXPECT_FALSE(vmm_.runs());
  raw_.reset();
  EXPECT_TRUE(vmm_.was_called("resume"));
}
TEST_F(HookPeerTest, WhoNeverReadsIsDropped) {
  raw_ = connect();
  greet(Role::observer);
  // Until its buffer of answers is full.
  const auto packet = hook_protocol::encode({.type = Type::get_state, .serial = 2});
  for (int i = 0; i < 100'000; ++i) {
    if (send_hook_packet(raw_.get(), packet, -1)) continue;
    pollfd entry{.fd = raw_.get(), .events = POLLOUT, .revents = 0};
    ASSERT_EQ(::poll(&entry, 1, 10'000), 1);
    if ((entry.revents & POLLHUP) != 0) return;
  }
  FAIL() << "it was not dropped";
}

// Requests that are right, but not now.
class HookOrderTest : public testing::Test {
 protected:
  void SetUp() override {
    vmm_.start_well();
    mover_ = vmm_.connect(Role::mover);
  }
  void expect_refused(const Result<void>& result, const std::string& words) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, Errc::vmm) << result.error().message;
    EXPECT_THAT(result.error().message, HasSubstr(words));
  }
  HookVmm vmm_;
  std::unique_ptr<HookClient> mover_;
};

TEST_F(HookOrderTest, CollectWithoutTracking) {
  DirtyBitmap dirty(HookVmm::kPages);
  expect_refused(mover_->collect_into(dirty, vmm_.soon()), "not tracked");
}
TEST_F(HookOrderTest, TrackTwice) {
  ASSERT_TRUE(mover_->start_tracking(vmm_.soon()));
  expect_refused(mover_->start_tracking(vmm_.soon()), "tracked already");
}
TEST_F(HookOrderTest, PauseTwice) {
  ASSERT_TRUE(mover_->pause(vmm_.soon()));
  expect_refused(mover_->pause(vmm_.soon()), "the guest is paused");
}
TEST_F(HookOrderTest, SaveStateOfAGuestThatRuns) {
  const auto state = mover_->save_state(vmm_.soon());
  ASSERT_FALSE(state);
  EXPECT_THAT(state.error().message, HasSubstr("the guest runs"));
}
TEST_F(HookOrderTest, CommitOfAGuestThatRuns) {
  expect_refused(mover_->commit(1, vmm_.soon()), "commit: the guest runs");
  EXPECT_TRUE(mover_->give_up()) << "a commit that was refused leaves the way back";
}
TEST_F(HookOrderTest, ResumeBeforeCommit) {
  ASSERT_TRUE(mover_->pause(vmm_.soon()));
  expect_refused(mover_->resume(1, vmm_.soon()), "the guest is paused");
}
TEST_F(HookOrderTest, EndBeforeCommit) {
  ASSERT_TRUE(mover_->pause(vmm_.soon()));
  expect_refused(mover_->end(vmm_.soon()), "the guest is paused");
}
TEST_F(HookOrderTest, CommitOfAnEarlierEpochThanTheGuestRunsUnder) {
  ASSERT_TRUE(mover_->pause(vmm_.soon()));
  ASSERT_TRUE(mover_->commit(4, vmm_.soon()));
  ASSERT_TRUE(mover_->resume(6, vmm_.soon()));
  mover_ = nullptr;
  mover_ = vmm_.connect(Role::mover);
  ASSERT_TRUE(mover_->pause(vmm_.soon()));
  expect_refused(mover_->commit(5, vmm_.soon()), "runs under epoch 6");
}
TEST_F(HookOrderTest, ResumeAfterEnd) {
  ASSERT_TRUE(mover_->pause(vmm_.soon()));
  ASSERT_TRUE(mover_->commit(4, vmm_.soon()));
  ASSERT_TRUE(mover_->end(vmm_.soon()));
  expect_refused(mover_->resume(9, vmm_.soon()), "runs elsewhere");
  EXPECT_FALSE(vmm_.runs());
}
TEST_F(HookOrderTest, TakingTheUserfaultOfAGuestThatMissesNothing) {
  const auto restorer = vmm_.connect(Role::restorer);
  const auto taken = restorer->take_userfault(vmm_.soon());
  ASSERT_FALSE(taken);
  EXPECT_THAT(taken.error().message, HasSubstr("no pages are missing"));
}
TEST_F(HookOrderTest, LoadingIntoAGuestThatRuns) {
  const auto restorer = vmm_.connect(Role::restorer);
  expect_refused(restorer->load_state({}, "attempt", vmm_.soon()), "load_state: the guest runs");
}

}  // namespace
}  // namespace pageferry
