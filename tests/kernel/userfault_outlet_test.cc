// UserfaultOutlet on the real userfaultfd, on memory of this very process or of a child.
#include "pager/userfault_outlet.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <list>
#include <vector>

#include "fakes/page_content.h"
#include "fakes/userfault_memory.h"
#include "fakes/waiting_child.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::uint64_t kRamPages = 64;
constexpr std::uint64_t kBiosPages = 4;
constexpr PageChannel kUrgent = PageChannel::urgent;
constexpr PageIndex kSecond{1};

bool holds(const std::byte* at, const std::vector<std::byte>& expected) {
  return std::memcmp(at, expected.data(), expected.size()) == 0;
}

// A guest of two blocks, registered with a userfaultfd as QEMU does it, and an outlet into it.
class UserfaultOutletTest : public testing::Test {
 protected:
  UserfaultOutletTest() : UserfaultOutletTest(Backing::anonymous) {}
  explicit UserfaultOutletTest(Backing backing)
      : ram_(bytes_of_pages(kRamPages), backing),
        bios_(bytes_of_pages(kBiosPages), backing),
        layout_(layout_of({{"pc.ram", kRamPages}, {"pc.bios", kBiosPages}})),
        userfault_(open_userfault()),
        outlet_(layout_, {ram_.address(), bios_.address()}) {
    register_missing(userfault_, ram_);
    register_missing(userfault_, bios_);
  }

  void open() {
    const auto opened = outlet_.open(duplicate(userfault_), tables_of());
    ASSERT_TRUE(opened) << opened.error().message;
  }
  void put(PageIndex first, std::uint64_t pages, std::uint64_t age = 1) {
    const auto taken =
        outlet_.put_pages(kUrgent, {first, pages}, contents_of(raw(first), pages, age));
    ASSERT_TRUE(taken) << taken.error().message;
    EXPECT_EQ(*taken, pages);
  }
  void put_zeros(PageIndex first, std::uint64_t pages) {
    const auto taken = outlet_.put_zeros(kUrgent, {first, pages});
    ASSERT_TRUE(taken) << taken.error().message;
    EXPECT_EQ(*taken, pages);
  }
  Toucher& touch(const UserfaultMemory& memory, std::uint64_t page) {
    return touchers_.emplace_back(memory.page(page));
  }
  std::vector<PageRun> faults() {
    std::vector<PageRun> faults;
    const auto read = outlet_.read_faults(faults);
    EXPECT_TRUE(read) << read.error().message;
    return faults;
  }
  void expect_that_a_waiting_thread_is_answered() {
    open();
    Toucher& toucher = touch(ram_, 5);
    ASSERT_TRUE(fault_comes(outlet_.fd()));
    EXPECT_THAT(faults(), ElementsAre(PageRun{PageIndex{5}, 1}));
    put(PageIndex{5}, 1);
    EXPECT_EQ(toucher.wait(), contents_of(5, 1)[0]);
  }
  // A page that came in another way.
  enum class Waiters : std::uint8_t { woken, left };
  void place(const std::byte* at, const std::vector<std::byte>& bytes, Waiters waiters) {
    uffdio_copy request{.dst = reinterpret_cast<std::uintptr_t>(at),
                        .src = reinterpret_cast<std::uintptr_t>(bytes.data()),
                        .len = bytes.size(),
                        .mode = waiters == Waiters::left ? UFFDIO_COPY_MODE_DONTWAKE : 0,
                        .copy = 0};
    ASSERT_EQ(::ioctl(userfault_.get(), UFFDIO_COPY, &request), 0) << std::strerror(errno);
  }
  void place_silently(std::uint64_t page, const std::vector<std::byte>& bytes) {
    place(ram_.page(page), bytes, Waiters::left);
  }

  UserfaultMemory ram_;
  UserfaultMemory bios_;
  std::list<Toucher> touchers_;  // wait, in the worst case, until what is below is closed
  MemoryLayout layout_;
  UniqueFd userfault_;
  UserfaultOutlet outlet_;
};

TEST_F(UserfaultOutletTest, AThreadThatWaitsForAPageGetsIt) {
  expect_that_a_waiting_thread_is_answered();
}

TEST_F(UserfaultOutletTest, AFaultIsNamedByItsPageInTheWholeLayout) {
  open();
  touch(bios_, 3);
  ASSERT_TRUE(fault_comes(outlet_.fd()));
  EXPECT_THAT(faults(), ElementsAre(PageRun{PageIndex{kRamPages + 3}, 1}));
}

TEST_F(UserfaultOutletTest, PagesArriveInEachBlock) {
  open();
  put(kFirstPage, kRamPages);
  put(PageIndex{kRamPages}, kBiosPages);
  EXPECT_TRUE(holds(ram_.data(), contents_of(0, kRamPages)));
  EXPECT_TRUE(holds(bios_.data(), contents_of(kRamPages, kBiosPages)));
}

TEST_F(UserfaultOutletTest, ZeroPagesArrive) {
  open();
  put_zeros(kFirstPage, kRamPages);
  EXPECT_TRUE(holds(ram_.data(), std::vector<std::byte>(ram_.bytes())));
}

TEST_F(UserfaultOutletTest, TakesNothingBeforeItIsOpen) {
  EXPECT_FALSE(outlet_.is_open());
  EXPECT_EQ(outlet_.fd(), -1);
  touch(ram_, 5);
  ASSERT_TRUE(fault_comes(userfault_.get()));
  EXPECT_THAT(faults(), IsEmpty());
  EXPECT_EQ(outlet_.put_pages(kUrgent, {kFirstPage, 1}, contents_of(0, 1)).value(), 0U);
  EXPECT_EQ(outlet_.put_zeros(kUrgent, {kFirstPage, 1}).value(), 0U);
}

TEST_F(UserfaultOutletTest, NobodyWaitsNothingIsRead) {
  open();
  EXPECT_THAT(faults(), IsEmpty());
}

TEST_F(UserfaultOutletTest, ManyFaultsAreReadInOneGo) {
  open();
  for (std::uint64_t page = 0; page < 40; ++page) touch(ram_, page);
  std::vector<PageRun> seen;
  while (seen.size() < touchers_.size()) {
    ASSERT_TRUE(fault_comes(outlet_.fd()));
    for (const PageRun& fault : faults()) seen.push_back(fault);
  }
  put(kFirstPage, 40);
  for (Toucher& toucher : touchers_) toucher.wait();
}

TEST_F(UserfaultOutletTest, APageThatIsThereKeepsWhatWasWrittenSince) {
  open();
  put(kFirstPage, 1);
  std::memset(ram_.page(0), 0x5a, kPageSizeBytes);
  put(kFirstPage, 1);
  put_zeros(kFirstPage, 1);
  EXPECT_TRUE(holds(ram_.page(0), std::vector<std::byte>(kPageSizeBytes, std::byte{0x5a})));
}

TEST_F(UserfaultOutletTest, WhoWaitsForAPageThatIsThereIsWoken) {
  open();
  Toucher& toucher = touch(ram_, 7);
  ASSERT_TRUE(fault_comes(outlet_.fd()));
  place_silently(7, contents_of(7, 1, 1));
  put(PageIndex{7}, 1, 2);
  EXPECT_EQ(toucher.wait(), contents_of(7, 1, 1)[0]);
  EXPECT_TRUE(holds(ram_.page(7), contents_of(7, 1, 1)));
}

TEST_F(UserfaultOutletTest, WhoWaitsForAZeroPageThatIsThereIsWoken) {
  open();
  Toucher& toucher = touch(ram_, 7);
  ASSERT_TRUE(fault_comes(outlet_.fd()));
  place_silently(7, contents_of(7, 1));
  put_zeros(PageIndex{7}, 1);
  EXPECT_EQ(toucher.wait(), contents_of(7, 1)[0]);
}

TEST_F(UserfaultOutletTest, TheRestOfARunArrivesAroundPagesThatAreThere) {
  open();
  for (const std::uint64_t page : {0U, 9U, 10U, 31U}) place_silently(page, contents_of(page, 1, 1));
  Toucher& toucher = touch(ram_, 20);
  ASSERT_TRUE(fault_comes(outlet_.fd()));
  put(kFirstPage, 32, 2);
  toucher.wait();
  for (std::uint64_t page = 0; page < 32; ++page) {
    const bool was_there = page == 0 || page == 9 || page == 10 || page == 31;
    EXPECT_TRUE(holds(ram_.page(page), contents_of(page, 1, was_there ? 1 : 2))) << page;
  }
}

TEST_F(UserfaultOutletTest, TheRestOfAZeroRunArrivesAroundPagesThatAreThere) {
  open();
  for (const std::uint64_t page : {0U, 9U, 31U}) place_silently(page, contents_of(page, 1));
  put_zeros(kFirstPage, 32);
  for (std::uint64_t page = 0; page < 32; ++page) {
    const bool was_there = page == 0 || page == 9 || page == 31;
    const auto expected = was_there ? contents_of(page, 1) : std::vector<std::byte>(kPageSizeBytes);
    EXPECT_TRUE(holds(ram_.page(page), expected)) << page;
  }
}

TEST_F(UserfaultOutletTest, AFaultOutsideTheLayoutIsRefusedWithItsAddress) {
  const UserfaultMemory other(kPageSizeBytes);
  open();
  register_missing(userfault_, other);
  touch(other, 0);
  ASSERT_TRUE(fault_comes(outlet_.fd()));
  std::vector<PageRun> none;
  const auto read = outlet_.read_faults(none);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Errc::invalid);
  EXPECT_THAT(read.error().message, HasSubstr(fmt::format("{:#x}", other.address())));
  place(other.data(), contents_of(0, 1), Waiters::woken);
  touchers_.clear();
}

TEST_F(UserfaultOutletTest, OpeningItWakesWhoWaitedForAPagerThatIsGone) {
  Toucher& toucher = touch(ram_, 11);
  ASSERT_TRUE(fault_comes(userfault_.get()));
  uffd_msg taken_along{};
  ASSERT_EQ(::read(userfault_.get(), &taken_along, sizeof taken_along),
            static_cast<ssize_t>(sizeof taken_along));
  open();
  ASSERT_TRUE(fault_comes(outlet_.fd())) << "it is asked for again";
  EXPECT_THAT(faults(), ElementsAre(PageRun{PageIndex{11}, 1}));
  put(PageIndex{11}, 1);
  EXPECT_EQ(toucher.wait(), contents_of(11, 1)[0]);
}

TEST_F(UserfaultOutletTest, OpeningItRegistersWhatTheVmmHasNotYet) {
  const UserfaultMemory memory(bytes_of_pages(4));
  const MemoryLayout layout = layout_of({{"late", 4}});
  UserfaultOutlet outlet(layout, {memory.address()});
  ASSERT_TRUE(outlet.open(open_userfault(), tables_of()));
  ASSERT_TRUE(outlet.put_pages(kUrgent, {kFirstPage, 4}, contents_of(0, 4)));
  EXPECT_TRUE(holds(memory.data(), contents_of(0, 4)));
}

TEST_F(UserfaultOutletTest, IsBusyUntilTheVmmHasSpokenToItsUserfaultfd) {
  const UserfaultMemory memory(bytes_of_pages(4));
  const MemoryLayout layout = layout_of({{"late", 4}});
  UserfaultOutlet outlet(layout, {memory.address()});
  const UniqueFd silent = open_userfault(Greeting::missing);
  const auto early = outlet.open(duplicate(silent), tables_of());
  ASSERT_FALSE(early);
  EXPECT_EQ(early.error().code, Errc::busy);
  EXPECT_FALSE(outlet.is_open());
  ASSERT_TRUE(greet(silent.get()));
  const auto opened = outlet.open(duplicate(silent), tables_of());
  EXPECT_TRUE(opened) << opened.error().message;
}

TEST_F(UserfaultOutletTest, MemoryThatIsNotThereIsTheVmmsFault) {
  open();
  ASSERT_EQ(::munmap(ram_.page(8), kPageSizeBytes), 0);
  const auto taken = outlet_.put_pages(kUrgent, {PageIndex{8}, 1}, contents_of(8, 1));
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code, Errc::vmm) << taken.error().message;
  EXPECT_THAT(taken.error().message, HasSubstr("UFFDIO_COPY page at"));
}

// --- memory in a file that is mapped shared ---

class UserfaultOutletMemfd : public UserfaultOutletTest {
 protected:
  UserfaultOutletMemfd() : UserfaultOutletTest(Backing::memfd) {}
};

TEST_F(UserfaultOutletMemfd, PagesAndZeroPagesArrive) {
  open();
  put(kFirstPage, 32);
  put_zeros(PageIndex{32}, 32);
  EXPECT_TRUE(holds(ram_.data(), contents_of(0, 32)));
  EXPECT_TRUE(holds(ram_.page(32), std::vector<std::byte>(bytes_of_pages(32))));
}

TEST_F(UserfaultOutletMemfd, AThreadThatWaitsForAPageGetsIt) {
  expect_that_a_waiting_thread_is_answered();
}

// A page of the file that no page table shows.
TEST_F(UserfaultOutletMemfd, APageOfTheFileThatIsNotMappedIsKept) {
  const auto older = contents_of(2, 1, 1);
  ASSERT_EQ(::pwrite(ram_.file(), older.data(), older.size(), bytes_of_pages(2)),
            static_cast<ssize_t>(older.size()));
  open();
  put(kFirstPage, 8, 2);
  EXPECT_TRUE(holds(ram_.page(1), contents_of(1, 1, 2)));
  EXPECT_TRUE(holds(ram_.page(2), older));
  EXPECT_TRUE(holds(ram_.page(3), contents_of(3, 1, 2)));
}

// --- a VMM of another process ---

// A guest of one block in a child, whose userfaultfd this process has a duplicate of.
struct GuestOfChild {
  GuestOfChild()
      : child([this] {
          UniqueFd own = open_userfault();
          register_missing(own, memory);
          return own.release();
        }) {
    userfault.reset(
        static_cast<int>(::syscall(SYS_pidfd_getfd, child.pidfd().get(), child.number(), 0)));
    EXPECT_TRUE(userfault.valid()) << std::strerror(errno);
  }
  UserfaultMemory memory{bytes_of_pages(8)};
  MemoryLayout layout = layout_of({{"pc.ram", 8}});
  WaitingChild child;
  PageTables tables = tables_of(child.pid());
  UniqueFd userfault;
  UserfaultOutlet outlet{layout, {memory.address()}};
};

TEST(UserfaultOutletOfAnotherProcess, PagesArriveThere) {
  GuestOfChild guest;
  ASSERT_TRUE(guest.outlet.open(std::move(guest.userfault), std::move(guest.tables)));
  ASSERT_TRUE(guest.outlet.put_pages(kUrgent, {kSecond, 1}, contents_of(1, 1)));
  const UniqueFd there(
      ::open(fmt::format("/proc/{}/mem", guest.child.pid()).c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<std::byte> seen(kPageSizeBytes);
  ASSERT_EQ(::pread(there.get(), seen.data(), seen.size(),
                    static_cast<off_t>(guest.memory.address() + kPageSizeBytes)),
            static_cast<ssize_t>(seen.size()));
  EXPECT_EQ(seen, contents_of(1, 1));
}

TEST(UserfaultOutletOfAnotherProcess, AVmmThatEndedWhilePagesComeIsGone) {
  GuestOfChild guest;
  ASSERT_TRUE(guest.outlet.open(std::move(guest.userfault), std::move(guest.tables)));
  guest.child.end();
  const auto taken = guest.outlet.put_pages(kUrgent, {kFirstPage, 1}, contents_of(0, 1));
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code, Errc::gone) << taken.error().message;
  const auto zeros = guest.outlet.put_zeros(kUrgent, {kFirstPage, 1});
  ASSERT_FALSE(zeros);
  EXPECT_EQ(zeros.error().code, Errc::gone) << zeros.error().message;
}

TEST(UserfaultOutletOfAnotherProcess, AVmmThatEndedBeforeItIsOpenIsGone) {
  GuestOfChild guest;
  guest.child.end();
  const auto opened = guest.outlet.open(std::move(guest.userfault), std::move(guest.tables));
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Errc::gone) << opened.error().message;
}

}  // namespace
}  // namespace pageferry
