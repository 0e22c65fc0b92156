// What a reader must refuse, each with one line that names the file and what is wrong: made by damaging a good file.
#include <gtest/gtest.h>

#include "fakes/page_file_fixture.h"
#include "transport/little_endian.h"

namespace pageferry {
namespace {

using namespace testing_support;

class PageFileRefusalTest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kPages = 300;

  void SetUp() override {
    write(disk_, fixed_ids());
    auto reader = open_reader(disk_);
    ASSERT_TRUE(reader.has_value()) << reader.error().message;
    header_ = (*reader)->header();
    record_ = (*reader)->record();
    ASSERT_GT(record_.delta_entries, 0U);
  }

  static void write(MemoryDisk& disk, const PageFileIds& ids) {
    auto writer = PageFileWriter::make(std::make_unique<MemoryStorage>(disk), ids, small_options(),
                                       real_clock());
    ASSERT_TRUE(writer.has_value());
    ASSERT_TRUE((*writer)->begin(layout_of({{"pc.ram", kPages}})));
    (*writer)->begin_pass(1);
    for (std::uint64_t page = 0; page < kPages; ++page) ASSERT_TRUE(put(**writer, page, 1));
    (*writer)->begin_pass(2);
    ASSERT_TRUE((*writer)->begin_blackout());
    for (std::uint64_t page = 0; page < 20; ++page) ASSERT_TRUE(put(**writer, page, 2));
    ASSERT_TRUE((*writer)->finish_and_commit());
  }

  FileBlock block_at(std::uint64_t offset) {
    return FileBlock(disk_.live.data() + offset, kFileBlockBytes);
  }
  void flip(std::uint64_t offset) { disk_.live.at(offset) ^= std::byte{0x20}; }

  // The refusal, as one line.
  Error refusal() {
    auto reader = open_reader(disk_);
    EXPECT_FALSE(reader.has_value()) << "was opened";
    if (reader) return {};
    EXPECT_EQ(reader.error().message.find('\n'), std::string::npos);
    EXPECT_EQ(reader.error().message.rfind("memory: ", 0), 0U) << reader.error().message;
    return reader.error();
  }
  void expect_corrupt(std::string_view words) {
    const Error error = refusal();
    EXPECT_EQ(error.code, Errc::corrupt);
    EXPECT_NE(error.message.find(words), std::string::npos) << error.message;
  }

  MemoryDisk disk_;
  PageFileHeader header_;
  CommitRecord record_;
};

TEST_F(PageFileRefusalTest, AnUncommittedFile) {
  const FileBlock commit = block_at(kCommitOffset);
  std::fill(commit.begin(), commit.end(), std::byte{0});
  expect_corrupt("not committed");
}

TEST_F(PageFileRefusalTest, AnEmptyFile) {
  disk_.live.clear();
  expect_corrupt("0 bytes long");
}

TEST_F(PageFileRefusalTest, AFileThatIsShorterThanCommitted) {
  disk_.live.resize(record_.file_bytes - kFileBlockBytes);
  expect_corrupt("were committed");
}

TEST_F(PageFileRefusalTest, SomethingElse) {
  std::fill(disk_.live.begin(), disk_.live.end(), std::byte{'x'});
  expect_corrupt("not a page file");
}

TEST_F(PageFileRefusalTest, AnotherVersion) {
  store_le<std::uint32_t>(block_at(kHeaderOffset), 8, 3);
  const Error error = refusal();
  EXPECT_EQ(error.code, Errc::version);
  EXPECT_NE(error.message.find("version 3, this program reads 1 and 2"), std::string::npos)
      << error.message;
}

TEST_F(PageFileRefusalTest, AFlippedBitInTheHeader) {
  flip(kHeaderOffset + 33);
  expect_corrupt("header checksum");
}

TEST_F(PageFileRefusalTest, AFlippedBitInTheCommitRecord) {
  flip(kCommitOffset + 50);
  expect_corrupt("commit record checksum");
}

TEST_F(PageFileRefusalTest, AFlippedBitInTheLayout) {
  flip(kLayoutOffset + 3);
  expect_corrupt("layout checksum");
}

TEST_F(PageFileRefusalTest, AFlippedBitInTheMap) {
  flip(header_.map_offset + kFileBlockBytes + 100);
  expect_corrupt("map block 1 checksum");
}

TEST_F(PageFileRefusalTest, AFlippedBitInTheDelta) {
  flip(record_.delta_offset + 20);
  expect_corrupt("delta block 0 checksum");
}

TEST_F(PageFileRefusalTest, AFlippedBitInTheMapChecksums) {
  flip(record_.map_checksums_offset + 2);
  expect_corrupt("map checksums have checksum");
}

TEST_F(PageFileRefusalTest, ACommitRecordWithMapChecksumsOutsideTheFile) {
  record_.map_checksums_offset = record_.file_bytes;
  encode_commit(record_, block_at(kCommitOffset));
  expect_corrupt("do not fit");
}

TEST_F(PageFileRefusalTest, AMapBlockInTheWrongPlace) {
  const ConstFileBlock second = block_at(header_.map_offset + kFileBlockBytes);
  std::copy(second.begin(), second.end(), block_at(header_.map_offset).begin());
  expect_corrupt("map block 1 is where block 0 should be");
}

TEST_F(PageFileRefusalTest, AnOldMapBlock) {
  // Valid in itself, but not the one that was committed: a write of it was lost.
  const FileBlock block = block_at(header_.map_offset);
  MapEntry entry = load_map_entry(block, 0);
  entry.crc ^= 1;
  store_map_entry(block, 0, entry);
  seal_map_block(header_.file_id, 0, block);
  expect_corrupt("map block 0 is valid but not the one that was committed");
}

TEST_F(PageFileRefusalTest, ABlockOfAnotherFile) {
  MemoryDisk other;
  PageFileIds ids = fixed_ids();
  ids.file_id[0] ^= std::byte{1};
  write(other, ids);
  const std::span<const std::byte> map =
      std::span(other.live).subspan(header_.map_offset, kFileBlockBytes);
  std::copy(map.begin(), map.end(), block_at(header_.map_offset).begin());
  expect_corrupt("map block 0 checksum");
}

TEST_F(PageFileRefusalTest, ACommitRecordOfAnotherFile) {
  record_.file_id[5] ^= std::byte{1};
  encode_commit(record_, block_at(kCommitOffset));
  expect_corrupt("commit record is of file");
}

TEST_F(PageFileRefusalTest, AHeaderThatClaimsTooManyPages) {
  header_.pages = std::uint64_t{1} << 40;
  encode_header(header_, block_at(kHeaderOffset));
  expect_corrupt("1099511627776 pages, limit");
}

TEST_F(PageFileRefusalTest, AHeaderThatClaimsTooManyRamBlocks) {
  header_.ram_blocks = 5000;
  encode_header(header_, block_at(kHeaderOffset));
  expect_corrupt("5000 RAM blocks, limit 1..1024");
}

TEST_F(PageFileRefusalTest, AHeaderThatClaimsAHugeLayout) {
  header_.layout_bytes = 0x40000000;
  encode_header(header_, block_at(kHeaderOffset));
  expect_corrupt("layout of 1073741824 bytes, limit");
}

TEST_F(PageFileRefusalTest, AHeaderWhoseMapIsElsewhere) {
  header_.map_offset += kSectionAlignmentBytes;
  encode_header(header_, block_at(kHeaderOffset));
  expect_corrupt("map offset is");
}

TEST_F(PageFileRefusalTest, AHeaderWhoseTailIsTooLarge) {
  header_.tail_bytes = std::uint64_t{1} << 60;
  encode_header(header_, block_at(kHeaderOffset));
  expect_corrupt("tail of");
}

TEST_F(PageFileRefusalTest, ACommitRecordThatClaimsALargerFile) {
  record_.file_bytes = std::uint64_t{1} << 40;
  encode_commit(record_, block_at(kCommitOffset));
  expect_corrupt("were committed");
}

TEST_F(PageFileRefusalTest, ACommitRecordWithAnUnboundedSize) {
  record_.file_bytes = ~std::uint64_t{0} - 4095;
  encode_commit(record_, block_at(kCommitOffset));
  expect_corrupt("committed size is 18446744073709547520, limit");
}

TEST_F(PageFileRefusalTest, ACommitRecordWithADeltaOutsideTheFile) {
  record_.delta_offset = record_.file_bytes;
  encode_commit(record_, block_at(kCommitOffset));
  expect_corrupt("does not fit");
}

TEST_F(PageFileRefusalTest, ACommitRecordWithMoreDeltaEntriesThanPages) {
  record_.delta_entries = kPages + 1;
  encode_commit(record_, block_at(kCommitOffset));
  expect_corrupt("delta entries is 301, limit 300");
}

TEST_F(PageFileRefusalTest, AMapEntryThatPointsOutsideTheFile) {
  const FileBlock block = block_at(header_.map_offset);
  MapEntry entry = load_map_entry(block, 50);
  entry.location = std::uint64_t{1} << 50;
  store_map_entry(block, 50, entry);
  seal_map_block(header_.file_id, 0, block);
  expect_corrupt("page 50 is said to be in block");
}

TEST_F(PageFileRefusalTest, AMapEntryThatPointsIntoTheMap) {
  const FileBlock block = block_at(header_.map_offset);
  MapEntry entry = load_map_entry(block, 50);
  entry.location = 1;
  store_map_entry(block, 50, entry);
  seal_map_block(header_.file_id, 0, block);
  expect_corrupt("page 50 is said to be in block 1");
}

TEST_F(PageFileRefusalTest, AMapBeyondTheReadersLimit) {
  PageFileReaderOptions options = small_reader_options();
  options.map_bytes_max = kFileBlockBytes;
  auto reader =
      PageFileReader::open(std::make_unique<MemoryStorage>(disk_), options, real_clock(), {});
  ASSERT_FALSE(reader.has_value());
  EXPECT_EQ(reader.error().code, Errc::invalid);
  EXPECT_NE(reader.error().message.find("limit 4096"), std::string::npos);
}

TEST_F(PageFileRefusalTest, EveryFlippedBitInHeaderCommitAndLayoutIsNoticed) {
  const std::uint64_t end = kLayoutOffset + header_.layout_bytes;
  for (std::uint64_t offset = 0; offset < end; offset += 7) {
    flip(offset);
    EXPECT_FALSE(open_reader(disk_).has_value()) << "offset " << offset;
    flip(offset);
  }
}

}  // namespace
}  // namespace pageferry
