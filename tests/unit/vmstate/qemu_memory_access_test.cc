// QemuMemoryAccess with this very process, or a child, in the place of QEMU: what it refuses, and what it reads from page tables.
#include "vmstate/qemu_memory_access.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>

#include <vector>

#include "fakes/page_content.h"
#include "fakes/userfault_memory.h"
#include "fakes/waiting_child.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::ElementsAre;
using testing::HasSubstr;

// Before every test: where Yama lets only parents trace, nobody may trace this process but by its leave.
class QemuMemoryAccessTest : public testing::Test {
 protected:
  void SetUp() override { ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY); }
};

QemuRamBlock block_at(const std::string& name, std::uint64_t bytes,
                      std::optional<std::uint64_t> address) {
  return {.name = name,
          .page_bytes = kPageSizeBytes,
          .used_bytes = bytes,
          .total_bytes = bytes,
          .host_address = address};
}

MemoryLayout layout_backed_by(std::uint64_t bytes, std::uint64_t backing_page_bytes) {
  auto layout = MemoryLayout::make({RamBlock{
      .name = "pc.ram", .length_bytes = bytes, .backing_page_bytes = backing_page_bytes}});
  PF_CHECK(layout.has_value());
  return *layout;
}

// --- probe ---

TEST_F(QemuMemoryAccessTest, TellsWhereTheBlocksAreInTheOrderOfTheLayout) {
  const MemoryLayout layout = layout_of({{"pc.ram", 4}, {"pc.bios", 2}});
  const auto access =
      QemuMemoryAccess::probe(::getpid(), layout,
                              {block_at("pc.bios", 8192, 0x20000), block_at("other", 4096, 0x90000),
                               block_at("pc.ram", 16384, 0x10000)});
  ASSERT_TRUE(access) << access.error().message;
  EXPECT_THAT(access->block_addresses(), ElementsAre(0x10000U, 0x20000U));
}

TEST_F(QemuMemoryAccessTest, AQemuThatDoesNotSayWhereItsMemoryIsIsUnsupported) {
  const MemoryLayout layout = layout_of({{"pc.ram", 4}});
  const auto access =
      QemuMemoryAccess::probe(::getpid(), layout, {block_at("pc.ram", 16384, std::nullopt)});
  ASSERT_FALSE(access);
  EXPECT_EQ(access.error().code, Errc::unsupported);
  EXPECT_THAT(access.error().message, HasSubstr("'pc.ram'"));
  EXPECT_THAT(access.error().message, HasSubstr("8.2"));
}

TEST_F(QemuMemoryAccessTest, ABlockThatIsNotAlignedToItsBackingPagesIsUnsupported) {
  const auto access =
      QemuMemoryAccess::probe(::getpid(), layout_backed_by(kHugeBytes, kHugeBytes),
                              {block_at("pc.ram", kHugeBytes, 3 * kHugeBytes + kPageSizeBytes)});
  ASSERT_FALSE(access);
  EXPECT_EQ(access.error().code, Errc::unsupported);
  EXPECT_THAT(access.error().message, HasSubstr("not aligned to its 2097152 byte pages"));
}

TEST_F(QemuMemoryAccessTest, AQemuThatMayNotBeTracedIsUnsupported) {
  const MemoryLayout layout = layout_of({{"pc.ram", 4}});
  const pid_t target = process_of_root();
  EXPECT_EQ(ask_as_nobody([&] {
              const auto access =
                  QemuMemoryAccess::probe(target, layout, {block_at("pc.ram", 16384, 0x10000)});
              return access ? 200 : static_cast<int>(access.error().code);
            }),
            static_cast<int>(Errc::unsupported));
}

TEST_F(QemuMemoryAccessTest, AQemuThatHasEndedIsGone) {
  WaitingChild child([] { return 0; });
  child.end();
  const auto access = QemuMemoryAccess::probe(child.pid(), layout_of({{"pc.ram", 4}}),
                                              {block_at("pc.ram", 16384, 0x10000)});
  ASSERT_FALSE(access);
  EXPECT_EQ(access.error().code, Errc::gone);
}

// --- userfault ---

QemuMemoryAccess access_to(pid_t pid) {
  auto access = QemuMemoryAccess::probe(pid, layout_of({{"pc.ram", 4}}),
                                        {block_at("pc.ram", 16384, 0x10000)});
  PF_CHECK(access.has_value());
  return std::move(*access);
}

TEST_F(QemuMemoryAccessTest, AUserfaultfdThatIsNotOpenYetIsNotFound) {
  const WaitingChild child([] { return 0; });
  const auto userfault = access_to(child.pid()).userfault();
  ASSERT_FALSE(userfault);
  EXPECT_EQ(userfault.error().code, Errc::not_found);
  EXPECT_THAT(userfault.error().message, HasSubstr("has no userfaultfd"));
}

TEST_F(QemuMemoryAccessTest, TheUserfaultfdIsDuplicated) {
  const WaitingChild child([] { return open_userfault().release(); });
  const auto userfault = access_to(child.pid()).userfault();
  ASSERT_TRUE(userfault) << userfault.error().message;
  EXPECT_TRUE(userfault->valid());
}

TEST_F(QemuMemoryAccessTest, OfTwoUserfaultfdsNoneIsGuessed) {
  const WaitingChild child([] {
    open_userfault().release();
    return open_userfault().release();
  });
  const auto userfault = access_to(child.pid()).userfault();
  ASSERT_FALSE(userfault);
  EXPECT_EQ(userfault.error().code, Errc::vmm);
  EXPECT_THAT(userfault.error().message, HasSubstr("2 userfaultfds"));
}

// --- mark_present ---

// The layout's one block in memory of this process.
struct Memory {
  explicit Memory(MemoryLayout of, std::uint64_t alignment = kPageSizeBytes)
      : layout(std::move(of)), memory(layout.bytes() + alignment) {
    const std::uint64_t begin = (memory.address() + alignment - 1) / alignment * alignment;
    pages = memory.data() + (begin - memory.address());
    // One small page at a time, whatever the machine's settings.
    ::madvise(memory.data(), memory.bytes(), MADV_NOHUGEPAGE);
  }
  void touch(std::uint64_t page) const { pages[bytes_of_pages(page)] = std::byte{1}; }
  Result<void> mark_present(SentMap& sent) const {
    const auto address = reinterpret_cast<std::uintptr_t>(pages);
    PF_ASSIGN(
        const QemuMemoryAccess access,
        QemuMemoryAccess::probe(::getpid(), layout, {block_at("pc.ram", layout.bytes(), address)}));
    return access.mark_present(layout, sent);
  }
  std::vector<std::uint64_t> present() const {
    SentMap sent(layout.pages());
    const auto marked = mark_present(sent);
    EXPECT_TRUE(marked) << marked.error().message;
    return pages_in(sent);
  }
  static std::vector<std::uint64_t> pages_in(const SentMap& sent) {
    std::vector<std::uint64_t> found;
    for (std::uint64_t page = 0; page < sent.pages(); ++page) {
      if (sent.state(PageIndex{page}) == PageState::sent) found.push_back(page);
    }
    return found;
  }
  MemoryLayout layout;
  UserfaultMemory memory;
  std::byte* pages = nullptr;
};

TEST_F(QemuMemoryAccessTest, MarksThePagesThatAreThereAndNoOthers) {
  const Memory memory(layout_of({{"pc.ram", 100}}));
  for (const std::uint64_t page : {0U, 7U, 8U, 99U}) memory.touch(page);
  EXPECT_THAT(memory.present(), ElementsAre(0, 7, 8, 99));
}

TEST_F(QemuMemoryAccessTest, SeesToTheEndOfALargeBlock) {
  // More page table entries than are read at once.
  const Memory memory(layout_of({{"pc.ram", 200'000}}));
  for (const std::uint64_t page : {65'535U, 65'536U, 199'999U}) memory.touch(page);
  EXPECT_THAT(memory.present(), ElementsAre(65'535, 65'536, 199'999));
}

TEST_F(QemuMemoryAccessTest, AZeroPageThatWasOnlyReadIsThere) {
  const Memory memory(layout_of({{"pc.ram", 10}}));
  const std::byte seen = *static_cast<const volatile std::byte*>(memory.pages);
  EXPECT_EQ(seen, std::byte{0});
  EXPECT_THAT(memory.present(), ElementsAre(0));
}

TEST_F(QemuMemoryAccessTest, APageThatWasSentIsLeftAlone) {
  const Memory memory(layout_of({{"pc.ram", 10}}));
  memory.touch(3);
  memory.touch(4);
  SentMap sent(10);
  sent.mark_received({PageIndex{3}, 1});
  sent.take({PageIndex{4}, 1});
  const auto marked = memory.mark_present(sent);
  ASSERT_TRUE(marked) << marked.error().message;
  EXPECT_EQ(sent.pages_sent(), 1U);
  EXPECT_EQ(sent.state(PageIndex{4}), PageState::in_flight);
}

TEST_F(QemuMemoryAccessTest, ABackingPageIsThereAsAWhole) {
  const std::uint64_t unit = kHugeBytes / kPageSizeBytes;
  const Memory memory(layout_backed_by(3 * kHugeBytes, kHugeBytes), kHugeBytes);
  memory.touch(unit);
  const auto present = memory.present();
  ASSERT_EQ(present.size(), unit);
  EXPECT_EQ(present.front(), unit);
  EXPECT_EQ(present.back(), 2 * unit - 1);
}

TEST_F(QemuMemoryAccessTest, PageTablesOfAQemuThatHasEndedAreGone) {
  WaitingChild child([] { return 0; });
  const auto access = access_to(child.pid());
  child.end();
  SentMap sent(4);
  const auto marked = access.mark_present(layout_of({{"pc.ram", 4}}), sent);
  ASSERT_FALSE(marked);
  EXPECT_EQ(marked.error().code, Errc::gone);
}

}  // namespace
}  // namespace pageferry
