// QemuRestoreLoop when pages go straight into QEMU's memory. The test plays QEMU: the channels are FakeDestination's, the memory
// and the userfaultfd are this process's own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>

#include <list>
#include <memory>

#include "fakes/expectations.h"
#include "fakes/fake_destination.h"
#include "fakes/memory_page_supply.h"
#include "fakes/page_content.h"
#include "fakes/userfault_memory.h"
#include "vmstate/qemu_restore_loop.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::HasSubstr;
using testing::IsEmpty;
using Event = QemuRestoreLoop::Event;

constexpr std::uint64_t kDirectPages = 3000;
constexpr std::uint64_t kDirectBiosPages = 16;

// A third of the pages is zero, each other one says which it is.
bool is_zero(std::uint64_t page) {
  return page % 3 == 0;
}

class DirectRestore : public testing::Test {
 protected:
  DirectRestore() {
    // For where Yama lets only parents trace.
    ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    for (std::uint64_t page = 0; page < layout_.pages(); ++page) {
      if (!is_zero(page)) supply_.set_page(PageIndex{page}, content_of(page, 1));
    }
  }

  void start(PrefetchOrder order) { start(order, SentMap(layout_.pages())); }
  void start(PrefetchOrder order, SentMap sent) {
    auto channels = QemuPageChannels::connect(destination_.path(), layout_);
    ASSERT_TRUE(channels) << channels.error().message;
    destination_.accept_channel();
    QemuReturnPathReader return_path(channels->main_fd(), layout_);
    auto access = QemuMemoryAccess::probe(::getpid(), layout_,
                                          {block("pc.ram", ram_), block("pc.bios", bios_)});
    ASSERT_TRUE(access) << access.error().message;
    auto made =
        QemuRestoreLoop::make(std::move(*channels), std::move(return_path), supply_, layout_,
                              std::move(sent), {.order = order}, std::move(*access));
    ASSERT_TRUE(made) << made.error().message;
    loop_ = std::move(*made);
    loop_->start();
  }
  // As QEMU does when it reads LISTEN.
  void listen() {
    userfault_ = open_userfault();
    register_missing(userfault_, ram_);
    register_missing(userfault_, bios_);
  }
  static QemuRamBlock block(const std::string& name, const UserfaultMemory& memory) {
    return {.name = name,
            .page_bytes = kPageSizeBytes,
            .used_bytes = memory.bytes(),
            .total_bytes = memory.bytes(),
            .host_address = memory.address()};
  }
  const std::byte* at(std::uint64_t page) const {
    return page < kDirectPages ? ram_.page(page) : bios_.page(page - kDirectPages);
  }
  bool is_right(std::uint64_t page) const {
    const PageArray expected = is_zero(page) ? PageArray{} : content_of(page, 1);
    return std::memcmp(at(page), expected.data(), expected.size()) == 0;
  }
  // The end of a restore: QEMU reads the end of the stream, and says so.
  void expect_end() {
    destination_.read_until_ended();
    EXPECT_THAT(destination_.pages(), IsEmpty()) << "pages in the stream";
    destination_.shut(0);
    ASSERT_EQ(loop_->wait(Event::all_received, soon()), Event::all_received);
  }

  UserfaultMemory ram_{bytes_of_pages(kDirectPages)};
  UserfaultMemory bios_{bytes_of_pages(kDirectBiosPages)};
  std::list<Toucher> touchers_;  // wait, in the worst case, until what is below is closed
  MemoryLayout layout_ = layout_of({{"pc.ram", kDirectPages}, {"pc.bios", kDirectBiosPages}});
  MemoryPageSupply supply_{layout_};
  FakeDestination destination_{layout_};
  UniqueFd userfault_;
  std::unique_ptr<QemuRestoreLoop> loop_;
};

TEST_F(DirectRestore, EveryPageArrivesOnceAndTheStreamCarriesOnlyTheEnd) {
  listen();
  start(PrefetchOrder::hot);
  expect_end();
  for (std::uint64_t page = 0; page < layout_.pages(); ++page) EXPECT_TRUE(is_right(page)) << page;
  EXPECT_EQ(loop_->counters().pages_demand + loop_->counters().pages_prefetched, layout_.pages());
}

TEST_F(DirectRestore, WaitsForAUserfaultfdThatIsOpenedLate) {
  start(PrefetchOrder::hot);
  listen();
  expect_end();
  EXPECT_TRUE(is_right(2000));
}

TEST_F(DirectRestore, WaitsForAUserfaultfdThatIsOpenAndNotReady) {
  userfault_ = open_userfault(Greeting::missing);
  start(PrefetchOrder::hot);
  ASSERT_TRUE(greet(userfault_.get()));
  expect_end();
  EXPECT_TRUE(is_right(2000));
}

TEST_F(DirectRestore, WhoeverTouchesAMissingPageGetsIt) {
  listen();
  start(PrefetchOrder::none);
  Toucher& toucher = touchers_.emplace_back(at(2000) + 100);
  EXPECT_EQ(toucher.wait(), content_of(2000, 1)[100]);
  EXPECT_TRUE(is_right(2000));
  EXPECT_GE(loop_->counters().faults, 1U);
}

TEST_F(DirectRestore, WhoWaitsBeforeTheLoopBeginsIsServed) {
  listen();
  Toucher& toucher = touchers_.emplace_back(at(700));
  ASSERT_TRUE(fault_comes(userfault_.get()));
  // Read, as QEMU's own thread reads, which then asks in the stream of a pager that is gone.
  uffd_msg lost{};
  ASSERT_EQ(::read(userfault_.get(), &lost, sizeof lost), static_cast<ssize_t>(sizeof lost));
  start(PrefetchOrder::none);
  EXPECT_EQ(toucher.wait(), content_of(700, 1)[0]);
}

TEST_F(DirectRestore, ARequestInTheStreamIsPlacedInMemory) {
  listen();
  Toucher& toucher = touchers_.emplace_back(at(2000));
  ASSERT_TRUE(fault_comes(userfault_.get()));
  uffd_msg read_by_qemu{};
  ASSERT_EQ(::read(userfault_.get(), &read_by_qemu, sizeof read_by_qemu),
            static_cast<ssize_t>(sizeof read_by_qemu));
  start(PrefetchOrder::none);
  destination_.ask("pc.ram", bytes_of_pages(2000));
  EXPECT_EQ(toucher.wait(), content_of(2000, 1)[0]);
}

TEST_F(DirectRestore, ARequestInTheStreamForAPageThatIsThereIsHarmless) {
  listen();
  start(PrefetchOrder::none);
  touchers_.emplace_back(at(2000)).wait();
  std::memset(ram_.page(2000), 0x5a, kPageSizeBytes);
  destination_.ask("pc.ram", bytes_of_pages(2000));
  // The next one is served behind it.
  destination_.ask("pc.ram", bytes_of_pages(500));
  touchers_.emplace_back(at(500)).wait();
  loop_->request_stop();
  ASSERT_EQ(loop_->wait(Event::all_received, soon()), Event::failed);
  EXPECT_EQ(loop_->error().code, Errc::canceled) << loop_->error().message;
  EXPECT_EQ(*ram_.page(2000), std::byte{0x5a});
  EXPECT_TRUE(is_right(500));
}

TEST_F(DirectRestore, WhatTheGuestWroteSinceAnEarlierPagerStays) {
  // Neither QEMU's bitmap nor the page tables told of it.
  std::memset(ram_.page(1234), 0x5a, kPageSizeBytes);
  listen();
  start(PrefetchOrder::linear);
  expect_end();
  EXPECT_EQ(*ram_.page(1234), std::byte{0x5a});
  EXPECT_TRUE(is_right(1233));
  EXPECT_TRUE(is_right(1235));
}

TEST_F(DirectRestore, PagesThatAreThereAreNotReadAgain) {
  SentMap sent(layout_.pages());
  sent.mark_received({PageIndex{0}, 2500});
  listen();
  start(PrefetchOrder::hot, std::move(sent));
  expect_end();
  EXPECT_EQ(loop_->counters().pages_demand + loop_->counters().pages_prefetched,
            layout_.pages() - 2500);
}

TEST_F(DirectRestore, DevicesThatAreLoadedWithoutAUserfaultfdAreAnError) {
  start(PrefetchOrder::hot);
  destination_.pong(QemuRestoreLoop::kDevicesLoadedPing);
  ASSERT_EQ(loop_->wait(Event::all_received, soon()), Event::failed);
  EXPECT_EQ(loop_->error().code, Errc::not_found);
  EXPECT_THAT(loop_->error().message, HasSubstr("has no userfaultfd"));
}

TEST_F(DirectRestore, AUserfaultfdThatStaysUnreadyIsAnErrorWhenDevicesAreLoaded) {
  userfault_ = open_userfault(Greeting::missing);
  start(PrefetchOrder::hot);
  destination_.pong(QemuRestoreLoop::kDevicesLoadedPing);
  ASSERT_EQ(loop_->wait(Event::all_received, soon()), Event::failed);
  EXPECT_THAT(loop_->error().message, HasSubstr("UFFDIO_REGISTER"));
}

TEST_F(DirectRestore, TwoUserfaultfdsAreAnError) {
  listen();
  const UniqueFd another = open_userfault();
  start(PrefetchOrder::hot);
  ASSERT_EQ(loop_->wait(Event::all_received, soon()), Event::failed);
  EXPECT_EQ(loop_->error().code, Errc::vmm);
  EXPECT_THAT(loop_->error().message, HasSubstr("2 userfaultfds"));
}

TEST_F(DirectRestore, AQemuThatClosesTheChannelIsGone) {
  listen();
  start(PrefetchOrder::none);
  destination_.close_channels();
  ASSERT_EQ(loop_->wait(Event::all_received, soon()), Event::failed);
  EXPECT_EQ(loop_->error().code, Errc::gone);
}

}  // namespace
}  // namespace pageferry
