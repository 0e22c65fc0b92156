// What a reader of a page file with bases must refuse, each with one line: made by damaging a good one, or what it leans on.
#include <gtest/gtest.h>

#include "fakes/page_file_chain.h"
#include "transport/little_endian.h"

namespace pageferry {
namespace {

using namespace testing_support;

class PageFileBaseRefusalTest : public ::testing::Test {
 protected:
  static constexpr unsigned kBase = 1;
  static constexpr unsigned kFile = 2;
  static constexpr std::size_t kBaseCountAt = 88;

  void SetUp() override {
    chain_.write(kBase, PageFileChain::kNone, [](PageFileWriter& sink) { put_all(sink, 500, 1); });
    chain_.write(kFile, kBase, [](PageFileWriter& sink) { ASSERT_TRUE(put(sink, 9, 2)); });
    const PageFileImage image = chain_.load(kFile);
    header_ = image.header;
    record_ = image.record;
  }
  FileBlock block_at(std::uint64_t offset, unsigned number = kFile) {
    return FileBlock(chain_.disk(number).live.data() + offset, kFileBlockBytes);
  }
  void write_header() { encode_header(header_, block_at(kHeaderOffset)); }
  // As it stands, with its checksum put right.
  void reseal_header() {
    store_le<std::uint32_t>(block_at(kHeaderOffset), 12,
                            page_file_block_crc(header_.file_id, block_at(kHeaderOffset), 12));
  }
  void write_entry(std::uint64_t page, const MapEntry& entry) {
    const FileBlock block = block_at(header_.map_offset);
    store_map_entry(block, page, entry);
    seal_map_block(header_.file_id, 0, block);
  }
  MapEntry entry(std::uint64_t page) { return load_map_entry(block_at(header_.map_offset), page); }

  void expect_refused(Errc code, std::string_view words) {
    const auto reader = chain_.open(kFile);
    ASSERT_FALSE(reader.has_value()) << "was opened";
    const Error& error = reader.error();
    EXPECT_EQ(error.code, code) << error.message;
    EXPECT_NE(error.message.find(words), std::string::npos) << error.message;
    EXPECT_EQ(error.message.find('\n'), std::string::npos);
    EXPECT_EQ(error.message.rfind("memory: ", 0), 0U) << error.message;
  }

  PageFileChain chain_;
  PageFileHeader header_;
  CommitRecord record_;
};

TEST_F(PageFileBaseRefusalTest, ABaseThatIsNotThere) {
  chain_.drop(kBase);
  expect_refused(Errc::not_found, "base 1 of 1 (" + PageFileChain::name(kBase) + ")");
}

TEST_F(PageFileBaseRefusalTest, AReaderThatDoesNotKnowWhereBasesLie) {
  const auto reader = open_reader(chain_.disk(kFile));
  ASSERT_FALSE(reader.has_value());
  EXPECT_EQ(reader.error().code, Errc::invalid);
}

TEST_F(PageFileBaseRefusalTest, ABaseThatWasNeverCommitted) {
  const FileBlock commit = block_at(kCommitOffset, kBase);
  std::fill(commit.begin(), commit.end(), std::byte{0});
  expect_refused(Errc::corrupt, "not committed");
}

TEST_F(PageFileBaseRefusalTest, ABaseWithAnotherCommitId) {
  CommitRecord other = chain_.load(kBase).record;
  other.commit_id[3] ^= std::byte{1};
  encode_commit(other, block_at(kCommitOffset, kBase));
  expect_refused(Errc::corrupt, "it is commit 01c1c2c2");
}

TEST_F(PageFileBaseRefusalTest, ABaseOfAnotherSize) {
  header_.bases[0].file_bytes += kFileBlockBytes;
  write_header();
  chain_.disk(kBase).live.resize(header_.bases[0].file_bytes);
  expect_refused(Errc::corrupt, "wanted was 01c1c2c3");
}

TEST_F(PageFileBaseRefusalTest, ABaseThatWasCutOff) {
  chain_.disk(kBase).live.resize(header_.bases[0].file_bytes - kFileBlockBytes);
  expect_refused(Errc::corrupt, "were committed");
}

TEST_F(PageFileBaseRefusalTest, ABaseOfAnotherGuest) {
  MemoryDisk other;
  auto writer = PageFileWriter::make(std::make_unique<MemoryStorage>(other),
                                     PageFileChain::ids(kBase), small_options(), real_clock());
  ASSERT_TRUE(writer.has_value());
  ASSERT_TRUE((*writer)->begin(layout_of({{"other", PageFileChain::kPages}})));
  put_all(**writer, 500, 1);
  ASSERT_TRUE((*writer)->finish_and_commit());
  const std::uint64_t bytes = header_.bases[0].file_bytes;
  chain_.disk(kBase).live = other.live;
  ASSERT_EQ((*writer)->stats().file_bytes, bytes);
  expect_refused(Errc::corrupt, "another layout");
}

TEST_F(PageFileBaseRefusalTest, SomethingElseUnderTheNameOfABase) {
  auto& bytes = chain_.disk(kBase).live;
  std::fill(bytes.begin(), bytes.end(), std::byte{'x'});
  expect_refused(Errc::corrupt, "not a page file");
}

TEST_F(PageFileBaseRefusalTest, AHeaderWithoutBasesInVersion2) {
  store_le<std::uint32_t>(block_at(kHeaderOffset), kBaseCountAt, 0);
  reseal_header();
  expect_refused(Errc::corrupt, "0 bases, limit 1..15");
}

TEST_F(PageFileBaseRefusalTest, AHeaderWithTooManyBases) {
  store_le<std::uint32_t>(block_at(kHeaderOffset), kBaseCountAt, 16);
  reseal_header();
  expect_refused(Errc::corrupt, "16 bases, limit 1..15");
}

TEST_F(PageFileBaseRefusalTest, AHeaderWithBytesBesideItsBases) {
  block_at(kHeaderOffset)[kBaseCountAt + 5] = std::byte{1};
  reseal_header();
  expect_refused(Errc::corrupt, "between the number of bases and the bases");
  block_at(kHeaderOffset)[kBaseCountAt + 5] = std::byte{0};
  block_at(kHeaderOffset)[130] = std::byte{1};
  reseal_header();
  expect_refused(Errc::corrupt, "header has bytes after its last field at 120");
}

TEST_F(PageFileBaseRefusalTest, AHeaderThatNamesABaseTwice) {
  header_.bases.push_back(header_.bases[0]);
  write_header();
  expect_refused(Errc::corrupt, "is named twice");
}

TEST_F(PageFileBaseRefusalTest, AFileThatIsItsOwnBase) {
  header_.bases[0].commit_id = record_.commit_id;
  write_header();
  expect_refused(Errc::corrupt, "is named as its own base");
}

TEST_F(PageFileBaseRefusalTest, ABaseWithASizeThatCannotBe) {
  for (const std::uint64_t bytes :
       {std::uint64_t{0}, header_.bases[0].file_bytes + 1, kFileBytesMax + kFileBlockBytes}) {
    header_.bases[0].file_bytes = bytes;
    write_header();
    expect_refused(Errc::corrupt, "base 1 has " + std::to_string(bytes) + " bytes");
  }
}

TEST_F(PageFileBaseRefusalTest, ACommitRecordOfAnotherVersionThanTheHeader) {
  record_.format_version = kPageFileVersion;
  encode_commit(record_, block_at(kCommitOffset));
  expect_refused(Errc::corrupt, "commit record has format version 1, the header 2");
}

TEST_F(PageFileBaseRefusalTest, ACommitRecordThatCountsOtherPagesInBases) {
  record_.base_pages -= 1;
  encode_commit(record_, block_at(kCommitOffset));
  expect_refused(Errc::corrupt, "499 of them in bases; committed were 500 and 498");
  record_.base_pages = record_.stored_pages + 1;
  encode_commit(record_, block_at(kCommitOffset));
  expect_refused(Errc::corrupt, "pages in bases is 501, limit");
}

TEST_F(PageFileBaseRefusalTest, AnEntryBehindTheEndOfItsBase) {
  MapEntry wrong = entry(40);
  wrong.location =
      (wrong.location & kLocationBaseMask) | header_.bases[0].file_bytes / kFileBlockBytes;
  write_entry(40, wrong);
  expect_refused(Errc::corrupt, "page 40 has location");
}

TEST_F(PageFileBaseRefusalTest, AnEntryInTheMapOfItsBase) {
  MapEntry wrong = entry(40);
  wrong.location = (wrong.location & kLocationBaseMask) | 1;
  write_entry(40, wrong);
  expect_refused(Errc::corrupt, "page 40 has location");
}

TEST_F(PageFileBaseRefusalTest, AnEntryInABaseThatTheHeaderDoesNotName) {
  MapEntry wrong = entry(40);
  wrong.location = wrong.block() | std::uint64_t{2} << kLocationBaseShift;
  write_entry(40, wrong);
  expect_refused(Errc::corrupt, "in base 2 of 1");
}

TEST_F(PageFileBaseRefusalTest, AnEntryInABaseWithAVersionOrZeroContent) {
  const MapEntry good = entry(40);
  MapEntry wrong = good;
  wrong.version = 1;
  write_entry(40, wrong);
  expect_refused(Errc::corrupt, "and version 1 in base 1");
  wrong = good;
  wrong.location |= kLocationZero;
  write_entry(40, wrong);
  expect_refused(Errc::corrupt, "page 40 has location 0x81");
}

TEST_F(PageFileBaseRefusalTest, AnEntryInABaseInAFileOfVersion1) {
  const PageFileHeader base = chain_.load(kBase).header;
  const FileBlock block = block_at(base.map_offset, kBase);
  MapEntry wrong = load_map_entry(block, 0);
  wrong.location |= std::uint64_t{1} << kLocationBaseShift;
  wrong.version = 0;
  store_map_entry(block, 0, wrong);
  seal_map_block(base.file_id, 0, block);
  const auto reader = open_reader(chain_.disk(kBase));
  ASSERT_FALSE(reader.has_value());
  EXPECT_NE(reader.error().message.find("in base 1 of 0"), std::string::npos)
      << reader.error().message;
}

TEST_F(PageFileBaseRefusalTest, EveryFlippedBitInHeaderAndCommitIsNoticed) {
  for (std::uint64_t offset = 0; offset < kLayoutOffset; offset += 5) {
    chain_.disk(kFile).live[offset] ^= std::byte{0x10};
    EXPECT_FALSE(chain_.open(kFile).has_value()) << "offset " << offset;
    chain_.disk(kFile).live[offset] ^= std::byte{0x10};
  }
}

}  // namespace
}  // namespace pageferry
