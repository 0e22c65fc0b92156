// Goal: the bytes a postcopy source sends are exactly those of docs/qemu-migration-stream.md.
// Method: each builder against bytes written out by hand.
#include "vmstate/qemu_stream_writer.h"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "fakes/page_content.h"
#include "fakes/source_stream.h"

namespace pageferry::qemu_stream {
namespace {

using fakes::message_bytes_of;
using testing_support::layout_of_blocks;

RamBlock block(std::string name, std::uint64_t length, std::uint64_t backing = kPageSizeBytes) {
  return {.name = std::move(name), .length_bytes = length, .backing_page_bytes = backing};
}

constexpr std::uint64_t kHugePage = 2 << 20;

TEST(QemuStreamWriterTest, FileHeaderIsMagicAndVersion) {
  ByteBuffer out;
  append_file_header(out);
  EXPECT_EQ(out, message_bytes_of({0x51, 0x45, 0x56, 0x4d, 0, 0, 0, 3}));
}

TEST(QemuStreamWriterTest, PingCarriesItsValue) {
  ByteBuffer out;
  append_ping(out, 0x01020304);
  EXPECT_EQ(out, message_bytes_of({8, 0, 2, 0, 4, 1, 2, 3, 4}));
}

TEST(QemuStreamWriterTest, AdviseHoldsTheOrOfAllBackingPageSizes) {
  ByteBuffer out;
  append_postcopy_advise(out,
                         layout_of_blocks({block("a", kHugePage, kHugePage), block("b", 4096)}));
  EXPECT_EQ(out, message_bytes_of(
                     {8, 0, 3, 0, 16, 0, 0, 0, 0, 0, 0x20, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x10, 0}));
}

TEST(QemuStreamWriterTest, RamStartListsBlocksAndNamesOnlyLargeBackingPages) {
  ByteBuffer out;
  append_ram_start(out, layout_of_blocks({block("hh", kHugePage, kHugePage), block("p", 0x1000)}));
  EXPECT_EQ(
      out,
      message_bytes_of(
          {1,    0,   0x72, 0x61, 0x6d, 3,    'r', 'a', 'm',  0, 0, 0, 0, 0, 0, 0, 4, 0,
           0,    0,   0,    0,    0x20, 0x10, 4,                     // total | MEM_SIZE
           2,    'h', 'h',  0,    0,    0,    0,   0,   0x20, 0, 0,  // length
           0,    0,   0,    0,    0,    0x20, 0,   0,                // its page size
           1,    'p', 0,    0,    0,    0,    0,   0,   0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,  // EOS
           0x7e, 0,   0x72, 0x61, 0x6d}));
}

TEST(QemuStreamWriterTest, DiscardNamesBlockAndRange) {
  ByteBuffer out;
  append_ram_discard_all(out, layout_of_blocks({block("p", 0x3000)}));
  EXPECT_EQ(out, message_bytes_of({8, 0, 6, 0, 20, 0, 1, 'p', 0, 0, 0,    0, 0,
                                   0, 0, 0, 0, 0,  0, 0, 0,   0, 0, 0x30, 0}));
}

TEST(QemuStreamWriterTest, ManyDiscardRangesAreSplitIntoCommands) {
  const std::vector<DiscardRange> ranges(513, DiscardRange{.start_bytes = 0, .length_bytes = 4096});
  ByteBuffer out;
  append_ram_discard(out, "p", ranges);
  const std::size_t heads = 2 * (5 + 1 + 2 + 1);
  EXPECT_EQ(out.size(), heads + ranges.size() * 16);
}

TEST(QemuStreamWriterTest, NoDiscardRangesMakeNoCommand) {
  ByteBuffer out;
  append_ram_discard(out, "p", {});
  EXPECT_TRUE(out.empty());
}

TEST(QemuStreamWriterTest, PackageIsListenDevicesPingRunBehindItsLength) {
  ByteBuffer out;
  const ByteBuffer devices = message_bytes_of({4, 9, 9});
  ASSERT_TRUE(append_packaged(out, build_device_package(devices, 7)).has_value());
  EXPECT_EQ(out, message_bytes_of({8, 0, 7, 0, 4, 0, 0, 0, 22, 8, 0, 4, 0, 0, 4, 9,
                                   9, 8, 0, 2, 0, 4, 0, 0, 0,  7, 8, 0, 5, 0, 0}));
}

TEST(QemuStreamWriterTest, SecondRecordOfABlockContinuesIt) {
  const MemoryLayout layout = layout_of_blocks({block("p", 0x3000)});
  PageRecordWriter writer(layout);
  ByteBuffer out;
  writer.zero(out, PageIndex{0});
  writer.zero(out, PageIndex{2});
  EXPECT_EQ(out,
            message_bytes_of({0, 0, 0, 0, 0, 0, 0, 2, 1, 'p', 0, 0, 0, 0, 0, 0, 0, 0x20, 0x22, 0}));
}

TEST(QemuStreamWriterTest, AnotherBlockIsNamedAndOffsetsAreItsOwn) {
  const MemoryLayout layout = layout_of_blocks({block("p", 0x2000), block("q", 0x2000)});
  PageRecordWriter writer(layout);
  ByteBuffer out;
  writer.page_header(out, PageIndex{1});
  writer.page_header(out, PageIndex{3});
  EXPECT_EQ(out, message_bytes_of(
                     {0, 0, 0, 0, 0, 0, 0x10, 8, 1, 'p', 0, 0, 0, 0, 0, 0, 0x10, 8, 1, 'q'}));
}

TEST(QemuStreamWriterTest, ResetNamesTheBlockAgain) {
  const MemoryLayout layout = layout_of_blocks({block("p", 0x2000)});
  PageRecordWriter writer(layout);
  ByteBuffer first;
  ByteBuffer second;
  writer.page_header(first, PageIndex{1});
  writer.reset();
  writer.page_header(second, PageIndex{1});
  EXPECT_EQ(first, second);
}

TEST(QemuStreamWriterTest, PageRecordIsHeaderAndContent) {
  const MemoryLayout layout = layout_of_blocks({block("p", 0x2000)});
  std::array<std::byte, kPageSizeBytes> content{};
  content.fill(std::byte{0xab});
  PageRecordWriter writer(layout);
  ByteBuffer out;
  writer.page(out, PageIndex{0}, content);
  ASSERT_EQ(out.size(), 10 + kPageSizeBytes);
  EXPECT_EQ(ByteBuffer(out.begin() + 10, out.end()), ByteBuffer(content.begin(), content.end()));
}

TEST(QemuStreamWriterTest, PartFrameAndEnd) {
  ByteBuffer out;
  append_part_begin(out);
  append_part_end(out);
  append_ram_end_and_eof(out);
  EXPECT_EQ(out, message_bytes_of({2,    0, 0x72, 0x61, 0x6d, 0,    0, 0,    0,    0,    0, 0, 0x10,
                                   0x7e, 0, 0x72, 0x61, 0x6d, 3,    0, 0x72, 0x61, 0x6d, 0, 0, 0,
                                   0,    0, 0,    0,    0x10, 0x7e, 0, 0x72, 0x61, 0x6d, 0}));
}

TEST(QemuStreamWriterTest, RecoveryAsksForBitmapsAndResumes) {
  ByteBuffer out;
  append_recv_bitmap_request(out, "pc.ram");
  append_postcopy_resume(out);
  EXPECT_EQ(out,
            message_bytes_of({8, 0, 10, 0, 7, 6, 'p', 'c', '.', 'r', 'a', 'm', 8, 0, 9, 0, 0}));
}

}  // namespace
}  // namespace pageferry::qemu_stream
