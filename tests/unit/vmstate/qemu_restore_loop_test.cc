// QemuRestoreLoop against a destination that the test plays: what arrives, on which channel, and how it ends.
#include "vmstate/qemu_restore_loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "fakes/expectations.h"
#include "fakes/fake_destination.h"
#include "fakes/memory_page_supply.h"

namespace pageferry {
namespace {

using namespace testing_support;

using testing::HasSubstr;
using testing_support::FakeDestination;
using testing_support::MemoryPageSupply;
using Event = QemuRestoreLoop::Event;

MemoryLayout two_blocks(std::uint64_t pages) {
  auto layout =
      MemoryLayout::make({RamBlock{.name = "pc.ram", .length_bytes = bytes_of_pages(pages)},
                          RamBlock{.name = "pc.bios", .length_bytes = bytes_of_pages(16)}});
  EXPECT_TRUE(layout);
  return *layout;
}

struct Restore {
  explicit Restore(std::uint64_t pages, ChannelCount channels = ChannelCount::two)
      : layout(two_blocks(pages)), supply(layout), destination(layout), count(channels) {
    for (std::uint64_t page = 0; page < layout.pages(); ++page) {
      if (page % 3 != 0) supply.set_filled(PageIndex{page}, content(page));
    }
  }
  static unsigned char content(std::uint64_t page) {
    return static_cast<unsigned char>(page % 251 + 1);
  }
  void start(PrefetchOrder order, SentMap sent) {
    auto channels = QemuPageChannels::connect(destination.path(), layout);
    ASSERT_TRUE(channels) << channels.error().message;
    destination.accept_channel();
    if (count == ChannelCount::two) {
      ASSERT_TRUE(channels->connect_urgent());
      destination.accept_channel();
    }
    QemuReturnPathReader return_path(channels->main_fd(), layout);
    auto made = QemuRestoreLoop::make(std::move(*channels), std::move(return_path), supply, layout,
                                      std::move(sent), {.order = order}, std::nullopt);
    ASSERT_TRUE(made) << made.error().message;
    loop = std::move(*made);
    loop->start();
  }
  void start(PrefetchOrder order) { start(order, SentMap(layout.pages())); }
  void expect_all_pages_once() const {
    EXPECT_EQ(destination.pages().size(), layout.pages());
    for (const auto& [page, arrived] : destination.pages()) {
      EXPECT_EQ(arrived.times, 1) << page;
      EXPECT_EQ(arrived.first_byte, page % 3 == 0 ? 0 : content(page)) << page;
    }
  }
  MemoryLayout layout;
  MemoryPageSupply supply;
  FakeDestination destination;
  ChannelCount count;
  std::unique_ptr<QemuRestoreLoop> loop;
};

TEST(QemuRestoreLoop, SendsEveryPageOnceAndEndsTheStream) {
  Restore restore(3000);
  restore.start(PrefetchOrder::hot);
  restore.destination.read_until_ended();
  restore.expect_all_pages_once();
  restore.destination.shut(0);
  EXPECT_EQ(restore.loop->wait(Event::all_received, soon()), Event::all_received);
}

TEST(QemuRestoreLoop, WorksWithASingleChannel) {
  Restore restore(3000, ChannelCount::one);
  restore.start(PrefetchOrder::hot);
  restore.destination.ask("pc.ram", bytes_of_pages(2000));
  restore.destination.read_until_ended();
  restore.expect_all_pages_once();
}

TEST(QemuRestoreLoop, AnswersARequestOnTheUrgentChannel) {
  Restore restore(3000);
  restore.start(PrefetchOrder::none);
  restore.destination.ask("pc.ram", bytes_of_pages(2000));
  restore.destination.read_until([&] { return restore.destination.has(2000); });
  EXPECT_EQ(restore.destination.pages().at(2000).channel, 1U);
}

TEST(QemuRestoreLoop, ADestinationThatReadsSlowlyLosesNothing) {
  Restore restore(20000);
  restore.start(PrefetchOrder::linear);
  // Not a byte is read while requests pile up: both sockets run full.
  for (std::uint64_t page = 19999; page > 18000; page -= 7) {
    restore.destination.ask("pc.ram", bytes_of_pages(page));
  }
  restore.destination.read_until_ended();
  restore.expect_all_pages_once();
}

TEST(QemuRestoreLoop, SendsOnlyWhatTheDestinationLacks) {
  Restore restore(1000);
  SentMap sent(restore.layout.pages());
  sent.mark_received({PageIndex{0}, 900});
  restore.start(PrefetchOrder::hot, std::move(sent));
  restore.destination.read_until_ended();
  EXPECT_EQ(restore.destination.pages().size(), restore.layout.pages() - 900);
  EXPECT_FALSE(restore.destination.has(899));
}

TEST(QemuRestoreLoop, ReportsThatTheDevicesAreLoaded) {
  Restore restore(100);
  restore.start(PrefetchOrder::none);
  restore.destination.pong(QemuRestoreLoop::kDevicesLoadedPing);
  EXPECT_EQ(restore.loop->wait(Event::devices_loaded, soon()), Event::devices_loaded);
}

TEST(QemuRestoreLoop, ADestinationThatClosesIsGone) {
  Restore restore(100);
  restore.start(PrefetchOrder::none);
  restore.destination.close_channels();
  ASSERT_EQ(restore.loop->wait(Event::all_received, soon()), Event::failed);
  EXPECT_EQ(restore.loop->error().code, Errc::gone);
}

TEST(QemuRestoreLoop, ADestinationThatEndsBeforeItHasAllIsAnError) {
  Restore restore(100);
  restore.start(PrefetchOrder::none);
  restore.destination.shut(0);
  ASSERT_EQ(restore.loop->wait(Event::all_received, soon()), Event::failed);
  EXPECT_EQ(restore.loop->error().code, Errc::vmm);
}

TEST(QemuRestoreLoop, NonsenseOnTheReturnPathEndsIt) {
  Restore restore(100);
  restore.start(PrefetchOrder::none);
  restore.destination.say(ByteBuffer(64, std::byte{0xff}));
  ASSERT_EQ(restore.loop->wait(Event::all_received, soon()), Event::failed);
  EXPECT_EQ(restore.loop->error().code, Errc::invalid);
}

TEST(QemuRestoreLoop, APageThatCannotBeProvedIsReportedWhileOthersAreServed) {
  Restore restore(1000);
  restore.supply.break_page(PageIndex{500});
  restore.start(PrefetchOrder::none);
  restore.destination.ask("pc.ram", bytes_of_pages(500));
  ASSERT_EQ(restore.loop->wait(Event::all_received, soon()), Event::page_unproved);
  EXPECT_EQ(restore.loop->error().code, Errc::corrupt);
  EXPECT_THAT(restore.loop->error().message, HasSubstr("block 'pc.ram', offset 0x1f4000"));
  restore.destination.ask("pc.ram", bytes_of_pages(700));
  restore.destination.read_until([&] { return restore.destination.has(700); });
  EXPECT_FALSE(restore.destination.has(500));
}

TEST(QemuRestoreLoop, StopsWhenAsked) {
  Restore restore(100);
  restore.start(PrefetchOrder::none);
  restore.loop->request_stop();
  ASSERT_EQ(restore.loop->wait(Event::all_received, soon()), Event::failed);
  EXPECT_EQ(restore.loop->error().code, Errc::canceled);
}

}  // namespace
}  // namespace pageferry
