// The reader under faults: bad reads are repeated, what stays bad is named and never handed out, slots are bounded.
#include "pager/page_file_reader.h"

#include <gtest/gtest.h>

#include "fakes/page_file_fixture.h"
#include "transport/faulty_file.h"

namespace pageferry {
namespace {

using namespace testing_support;

class PageFileReaderTest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kPages = 64;
  // Head, layout, index, map: what opening reads before the first page.
  static constexpr unsigned kReadsToOpen = 4;

  void SetUp() override {
    const auto writer = writer_on(disk_, layout_of({{"pc.ram", kPages}, {"vga.vram", 16}}));
    ASSERT_NE(writer, nullptr);
    writer->begin_pass(1);
    for (std::uint64_t page = 0; page < kPages; ++page) ASSERT_TRUE(put(*writer, page, 1));
    ASSERT_TRUE(writer->finish_and_commit());
  }
  // Faults count reads from the first page on.
  std::unique_ptr<PageFileReader> open(const std::vector<StorageFault>& faults) {
    std::vector<StorageFault> shifted = faults;
    for (StorageFault& fault : shifted) fault.count += kReadsToOpen;
    auto file = FaultyFile::over(std::make_unique<MemoryStorage>(disk_), shifted, real_clock());
    EXPECT_TRUE(file.has_value());
    PageFileReaderOptions options = small_reader_options();
    options.attempts = 3;
    options.retry_delay = Milliseconds(1);
    auto reader = PageFileReader::open(std::move(*file), options, real_clock(), {});
    EXPECT_TRUE(reader.has_value()) << reader.error().message;
    return std::move(*reader);
  }
  static StorageFault read_fault(StorageFault::When when, std::uint64_t count, FaultEffect effect) {
    return {IoKind::read, when, count, effect, Milliseconds(0)};
  }

  MemoryDisk disk_;
};

TEST_F(PageFileReaderTest, ABadTransferIsRepeated) {
  const auto reader = open({read_fault(StorageFault::When::nth, 1, FaultEffect::flip)});
  EXPECT_TRUE(holds(*reader, 7, 1));
  EXPECT_EQ(reader->stats().checksum_failures, 1U);
  EXPECT_EQ(reader->stats().given_up, 0U);
}

TEST_F(PageFileReaderTest, AnIoErrorIsRepeated) {
  const auto reader = open({read_fault(StorageFault::When::nth, 1, FaultEffect::eio),
                            read_fault(StorageFault::When::nth, 2, FaultEffect::eio)});
  EXPECT_TRUE(holds(*reader, 7, 1));
  EXPECT_EQ(reader->stats().io_failures, 2U);
}

TEST_F(PageFileReaderTest, APageThatStaysBadIsNamedAndNotHandedOut) {
  const auto reader = open({read_fault(StorageFault::When::after, 0, FaultEffect::flip)});
  const auto ticket = reader->start_read({PageIndex{8}, 4}, ReadClass::demand);
  ASSERT_TRUE(ticket.has_value());
  const ReadDone done = next_done(*reader);
  ASSERT_FALSE(done.bytes.has_value());
  EXPECT_EQ(done.bytes.error().code, Errc::corrupt);
  // The flipped bit is in the middle of the read: the third page.
  const std::uint64_t offset = reader->header().slots_offset + 10 * kPageSizeBytes;
  EXPECT_NE(done.bytes.error().message.find(
                "page 10 (RAM block 'pc.ram' offset 0xa000, file offset " + std::to_string(offset)),
            std::string::npos)
      << done.bytes.error().message;
  EXPECT_EQ(reader->stats().checksum_failures, 3U);
  reader->release(done.ticket);
}

TEST_F(PageFileReaderTest, AStoreThatStaysBrokenIsAnIoError) {
  const auto reader = open({read_fault(StorageFault::When::after, 0, FaultEffect::eio)});
  ASSERT_TRUE(reader->start_read({PageIndex{8}, 1}, ReadClass::prefetch));
  const ReadDone done = next_done(*reader);
  ASSERT_FALSE(done.bytes.has_value());
  EXPECT_EQ(done.bytes.error().code, Errc::io);
  EXPECT_NE(done.bytes.error().message.find("page 8 (RAM block 'pc.ram'"), std::string::npos);
  reader->release(done.ticket);
}

TEST_F(PageFileReaderTest, PrefetchCannotTakeTheSlotsOfDemand) {
  const auto reader = open({});
  for (unsigned i = 0; i < small_reader_options().prefetch_slots; ++i) {
    ASSERT_TRUE(reader->start_read({PageIndex{i}, 1}, ReadClass::prefetch));
  }
  const auto refused = reader->start_read({PageIndex{50}, 1}, ReadClass::prefetch);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, Errc::busy);
  EXPECT_TRUE(reader->start_read({PageIndex{50}, 1}, ReadClass::demand));
  for (const ReadDone& done : reader->poll()) reader->release(done.ticket);
}

TEST_F(PageFileReaderTest, AReleasedSlotIsUsedAgain) {
  const auto reader = open({});
  for (std::uint64_t i = 0; i < 200; ++i) EXPECT_TRUE(holds(*reader, i % kPages, 1));
}

TEST_F(PageFileReaderTest, ReadsOfWhatIsNotStoredTogetherAreRefused) {
  const auto reader = open({});
  const auto code = [&](std::uint64_t page, std::uint64_t pages) {
    return reader->start_read({PageIndex{page}, pages}, ReadClass::demand).error().code;
  };
  EXPECT_EQ(code(70, 1), Errc::invalid);   // zero
  EXPECT_EQ(code(60, 10), Errc::invalid);  // stored, then zero
  EXPECT_EQ(code(0, 17), Errc::invalid);   // longer than a buffer
  EXPECT_EQ(code(0, 0), Errc::invalid);
  EXPECT_EQ(code(80, 1), Errc::invalid);                 // beyond the guest
  EXPECT_EQ(code(1, ~std::uint64_t{0}), Errc::invalid);  // overflow
}

TEST_F(PageFileReaderTest, PollNeverBlocksOnAStoreThatHangs) {
  const auto reader = open({read_fault(StorageFault::When::after, 0, FaultEffect::hang)});
  ASSERT_TRUE(reader->start_read({PageIndex{0}, 1}, ReadClass::demand));
  EXPECT_TRUE(reader->poll().empty());
}

}  // namespace
}  // namespace pageferry
