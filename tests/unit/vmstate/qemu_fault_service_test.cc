// QemuFaultService with this very process in the place of a QEMU whose monitor is silent: its memory, its userfaultfd, and threads that
// wait for pages.
#include "vmstate/qemu_fault_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>

#include <list>
#include <memory>

#include "fakes/memory_page_supply.h"
#include "fakes/page_content.h"
#include "fakes/userfault_memory.h"
#include "fakes/waiting_child.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::HasSubstr;

constexpr std::uint64_t kPages = 3000;
constexpr std::uint64_t kBiosPages = 16;

class QemuFaultServiceTest : public testing::Test {
 protected:
  QemuFaultServiceTest() {
    // For where Yama lets only parents trace.
    ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    for (std::uint64_t page = 0; page < layout_.pages(); ++page) {
      if (page % 3 != 0) supply_.set_page(PageIndex{page}, content_of(page, 1));
    }
  }
  void listen() {
    userfault_ = open_userfault();
    register_missing(userfault_, ram_);
    register_missing(userfault_, bios_);
  }
  QemuMemoryMap map() const {
    return {.process = identify_process(::getpid()).value(),
            .placement = PagePlacement::direct,
            .layout = layout_,
            .block_addresses = {ram_.address(), bios_.address()}};
  }
  void start() { start(supply_); }
  void start(PageSupply& supply) {
    auto started = QemuFaultService::start(map(), supply);
    ASSERT_TRUE(started) << started.error().message;
    service_ = std::move(*started);
  }
  Error refusal(const QemuMemoryMap& map) {
    auto started = QemuFaultService::start(map, supply_);
    EXPECT_FALSE(started);
    return started ? Error{} : started.error();
  }
  // A thread that misses the page, and whose fault another reader took along.
  Toucher& touch_and_lose_the_fault(std::uint64_t page) {
    Toucher& toucher = touchers_.emplace_back(ram_.page(page));
    lose_a_fault();
    return toucher;
  }
  void lose_a_fault() const {
    ASSERT_TRUE(fault_comes(userfault_.get()));
    uffd_msg lost{};
    ASSERT_EQ(::read(userfault_.get(), &lost, sizeof lost), static_cast<ssize_t>(sizeof lost));
  }

  UserfaultMemory ram_{bytes_of_pages(kPages)};
  UserfaultMemory bios_{bytes_of_pages(kBiosPages)};
  std::list<Toucher> touchers_;  // wait, in the worst case, until what is below is closed
  MemoryLayout layout_ = layout_of({{"pc.ram", kPages}, {"pc.bios", kBiosPages}});
  MemoryPageSupply supply_{layout_};
  UniqueFd userfault_;
  std::unique_ptr<QemuFaultService> service_;
};

TEST_F(QemuFaultServiceTest, WhoWaitedForADeadPagerGetsThePage) {
  listen();
  Toucher& toucher = touch_and_lose_the_fault(700);
  start();
  EXPECT_EQ(toucher.wait(), content_of(700, 1)[0]);
  EXPECT_GE(service_->pages_placed(), 1U);
}

TEST_F(QemuFaultServiceTest, WhoTouchesAMissingPageLaterGetsItToo) {
  listen();
  start();
  EXPECT_EQ(touchers_.emplace_back(ram_.page(2000) + 100).wait(), content_of(2000, 1)[100]);
  EXPECT_EQ(touchers_.emplace_back(bios_.page(2) + 100).wait(), content_of(kPages + 2, 1)[100]);
  EXPECT_EQ(touchers_.emplace_back(ram_.page(9)).wait(), std::byte{0});
}

// QEMU's own fault thread reads there too, and then waits for its stream: no wakeup of the beginning helps those that it has heard of.
TEST_F(QemuFaultServiceTest, FaultsThatAnotherReaderTakesAlongAreHeardAgain) {
  listen();
  start();
  constexpr std::uint64_t kApart = 100;
  for (std::uint64_t page = 1; page < kPages; page += kApart) {
    touchers_.emplace_back(ram_.page(page));
    // Whoever is faster has it.
    uffd_msg lost{};
    [[maybe_unused]] const ssize_t got = ::read(userfault_.get(), &lost, sizeof lost);
  }
  std::uint64_t page = 1;
  for (Toucher& toucher : touchers_) {
    const std::byte expected = page % 3 == 0 ? std::byte{0} : content_of(page, 1)[0];
    EXPECT_EQ(toucher.wait(), expected) << page;
    page += kApart;
  }
}

TEST_F(QemuFaultServiceTest, BringsOnlyWhatIsWaitedForAndWhatLiesAroundIt) {
  listen();
  start();
  touchers_.emplace_back(ram_.page(2000)).wait();
  EXPECT_FALSE(tables_of().has(ram_.address()).value());
  EXPECT_LE(service_->pages_placed(), 64U);
}

TEST_F(QemuFaultServiceTest, WhatTheGuestWroteStays) {
  listen();
  start();
  touchers_.emplace_back(ram_.page(2000)).wait();
  std::memset(ram_.page(2000), 0x5a, kPageSizeBytes);
  touchers_.emplace_back(ram_.page(2001)).wait();
  touchers_.emplace_back(ram_.page(1000)).wait();
  EXPECT_EQ(*ram_.page(2000), std::byte{0x5a});
}

TEST_F(QemuFaultServiceTest, WhenItEndsWhoStillWaitsIsHeardByTheNext) {
  listen();
  MemoryPageSupply broken(layout_);
  broken.set_filled(PageIndex{700}, 1);
  broken.break_page(PageIndex{700});
  start(broken);
  Toucher& toucher = touchers_.emplace_back(ram_.page(700));
  // A page that can come, to know that the one before was asked for.
  touchers_.emplace_back(ram_.page(1400)).wait();
  service_.reset();
  EXPECT_FALSE(toucher.has_seen());
  start();
  EXPECT_EQ(toucher.wait(), content_of(700, 1)[0]);
}

TEST_F(QemuFaultServiceTest, RegistersNothing) {
  userfault_ = open_userfault();  // it has been, or never was
  start();
  service_.reset();
  EXPECT_EQ(touchers_.emplace_back(ram_.page(700)).wait(), std::byte{0}) << "nobody waits";
}

TEST_F(QemuFaultServiceTest, AQemuWithoutAUserfaultfdWaitsForNothing) {
  EXPECT_EQ(refusal(map()).code, Errc::not_found);
}

TEST_F(QemuFaultServiceTest, AQemuThatHasEndedOrAnotherWithItsPidIsGone) {
  listen();
  QemuMemoryMap other = map();
  ++other.process.start_ticks;
  EXPECT_EQ(refusal(other).code, Errc::gone);
  WaitingChild child([] { return 0; });
  other.process = identify_process(child.pid()).value();
  child.end();
  EXPECT_EQ(refusal(other).code, Errc::gone);
}

TEST_F(QemuFaultServiceTest, ARestoreInTheStreamIsRefused) {
  listen();
  const Error error = refusal(
      {.process = identify_process(::getpid()).value(), .placement = PagePlacement::stream});
  EXPECT_EQ(error.code, Errc::unsupported);
  EXPECT_THAT(error.message, HasSubstr("in its stream"));
}

TEST_F(QemuFaultServiceTest, TheMapOfAnotherGuestIsRefused) {
  listen();
  QemuMemoryMap other = map();
  other.layout = layout_of({{"pc.ram", kPages}, {"pc.bios", kBiosPages - 1}});
  const Error error = refusal(other);
  EXPECT_EQ(error.code, Errc::invalid);
  EXPECT_THAT(error.message, HasSubstr("2 RAM blocks with 3016 pages are not the 2 with 3015"));
}

}  // namespace
}  // namespace pageferry
