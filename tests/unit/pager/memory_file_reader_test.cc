// MemoryFileReader: page n is at n pages, holes are zero and not read, and what cannot be read is not handed out.
#include "pager/memory_file_reader.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "fakes/page_content.h"
#include "fakes/page_file_fixture.h"
#include "fakes/scratch_directory.h"
#include "transport/faulty_file.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::uint64_t kMemoryFilePages = 48;

class MemoryFileReaderTest : public testing::Test {
 protected:
  MemoryFileReaderTest() { disk_.live = contents_of(0, kMemoryFilePages); }

  Result<std::unique_ptr<MemoryFileReader>> try_open(const std::vector<PageRun>& holes = {},
                                                     const std::vector<StorageFault>& faults = {}) {
    auto file = FaultyFile::over(std::make_unique<MemoryStorage>(disk_), faults, real_clock());
    EXPECT_TRUE(file);
    const MemoryFileReaderOptions options{.read_bytes_max = std::size_t{64} << 10,
                                          .demand_slots = 2,
                                          .prefetch_slots = 2,
                                          .attempts = 3,
                                          .retry_delay = Milliseconds(1)};
    return MemoryFileReader::open(std::move(*file), holes, options, real_clock());
  }
  std::unique_ptr<MemoryFileReader> open(const std::vector<PageRun>& holes = {},
                                         const std::vector<StorageFault>& faults = {}) {
    auto reader = try_open(holes, faults);
    EXPECT_TRUE(reader) << reader.error().message;
    return reader ? std::move(*reader) : nullptr;
  }
  static StorageFault bad_read(StorageFault::When when, std::uint64_t count) {
    return {IoKind::read, when, count, FaultEffect::eio, Milliseconds(0)};
  }

  MemoryDisk disk_;
};

TEST_F(MemoryFileReaderTest, EachPageIsAtItsPlace) {
  const auto reader = open();
  EXPECT_EQ(reader->layout().pages(), kMemoryFilePages);
  for (std::uint64_t page = 0; page < kMemoryFilePages; ++page)
    EXPECT_TRUE(holds(*reader, page, 1)) << page;
}

TEST_F(MemoryFileReaderTest, HolesAreZeroAndEndARun) {
  const auto reader = open({{PageIndex{4}, 3}, {PageIndex{20}, 1}});
  EXPECT_FALSE(reader->is_zero(PageIndex{3}));
  EXPECT_TRUE(reader->is_zero(PageIndex{4}));
  EXPECT_TRUE(reader->is_zero(PageIndex{6}));
  EXPECT_EQ(reader->contiguous_run(PageIndex{0}, 64), (PageRun{PageIndex{0}, 4}));
  EXPECT_EQ(reader->contiguous_run(PageIndex{7}, 5), (PageRun{PageIndex{7}, 5}));
  EXPECT_EQ(reader->contiguous_run(PageIndex{21}, 64).pages, 16U) << "the longest read";
  EXPECT_EQ(reader->start_read({PageIndex{0}, 5}, ReadClass::demand).error().code, Errc::invalid);
}

TEST_F(MemoryFileReaderTest, BuffersAreBoundedForEachClass) {
  const auto reader = open();
  const auto start = [&](ReadClass read_class) {
    const auto started = reader->start_read({PageIndex{0}, 1}, read_class);
    return started.has_value();
  };
  EXPECT_TRUE(start(ReadClass::prefetch));
  EXPECT_TRUE(start(ReadClass::prefetch));
  EXPECT_FALSE(start(ReadClass::prefetch));
  EXPECT_TRUE(start(ReadClass::demand));
  for (const ReadDone& done : reader->poll()) reader->release(done.ticket);
  EXPECT_TRUE(start(ReadClass::prefetch));
}

TEST_F(MemoryFileReaderTest, AFailedReadIsTriedAgain) {
  const auto reader =
      open({}, {bad_read(StorageFault::When::nth, 1), bad_read(StorageFault::When::nth, 2)});
  EXPECT_TRUE(holds(*reader, 7, 1));
}

TEST_F(MemoryFileReaderTest, WhatFailsForGoodIsNamedAndNotHandedOut) {
  const auto reader = open({}, {bad_read(StorageFault::When::always, 0)});
  const auto ticket = reader->start_read({PageIndex{7}, 1}, ReadClass::demand);
  ASSERT_TRUE(ticket);
  const ReadDone done = next_done(*reader);
  ASSERT_FALSE(done.bytes);
  EXPECT_EQ(done.bytes.error().code, Errc::io);
  EXPECT_THAT(done.bytes.error().message, HasSubstr("page 7 (file offset 28672), after 3 reads"));
  reader->release(*ticket);
}

TEST_F(MemoryFileReaderTest, AFileThatWasCutMeanwhileIsCorrupt) {
  const auto reader = open();
  disk_.live.resize(bytes_of_pages(8));
  const auto ticket = reader->start_read({PageIndex{8}, 1}, ReadClass::demand);
  ASSERT_TRUE(ticket);
  const ReadDone done = next_done(*reader);
  ASSERT_FALSE(done.bytes);
  EXPECT_EQ(done.bytes.error().code, Errc::corrupt);
  reader->release(*ticket);
}

TEST_F(MemoryFileReaderTest, AFileThatIsEmptyOrNoWholePagesIsRefused) {
  disk_.live.resize(bytes_of_pages(3) + 1);
  EXPECT_THAT(try_open().error().message, HasSubstr("has 12289 bytes, must be a multiple of 4096"));
  disk_.live.clear();
  EXPECT_EQ(try_open().error().code, Errc::invalid);
}

TEST(FindHoles, ThoseOfASparseFileAreFound) {
  const ScratchDirectory directory;
  const std::string path = directory.file("memory");
  const UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_TRUE(file.valid());
  ASSERT_EQ(::ftruncate(file.get(), static_cast<off_t>(bytes_of_pages(100))), 0);
  const auto write_page = [&](std::uint64_t page) {
    const auto bytes = contents_of(page, 1);
    ASSERT_EQ(
        ::pwrite(file.get(), bytes.data(), bytes.size(), static_cast<off_t>(bytes_of_pages(page))),
        static_cast<ssize_t>(bytes.size()));
  };
  write_page(0);
  write_page(50);
  write_page(51);
  const auto holes = find_holes(file, 100, path);
  ASSERT_TRUE(holes) << holes.error().message;
  EXPECT_THAT(*holes, ElementsAre(PageRun{PageIndex{1}, 49}, PageRun{PageIndex{52}, 48}));
  EXPECT_THAT(find_holes(file, 51, path).value(), ElementsAre(PageRun{PageIndex{1}, 49}));
  EXPECT_THAT(find_holes(file, 1, path).value(), IsEmpty());
}

}  // namespace
}  // namespace pageferry
