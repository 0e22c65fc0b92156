// A page file of format version 1, made once and kept: it must be readable for ever, and what is decoded must encode to the
// same bytes. A failure here means that the format changed: raise the version, keep this file.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <map>

#include "golden/page_file_v1.h"

namespace pageferry {
namespace {

using namespace testing_support;

class PageFileGoldenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::ifstream in(PAGEFERRY_GOLDEN_DIR "/page_file_v1.bin", std::ios::binary);
    ASSERT_TRUE(in.good());
    const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
    for (char c : bytes) disk_.live.push_back(static_cast<std::byte>(c));
    MemoryStorage file(disk_);
    Result<PageFileImage> image = PageFileImage::load(file, std::uint64_t{1} << 20, {});
    ASSERT_TRUE(image.has_value()) << image.error().message;
    image_ = std::move(*image);
  }
  ConstFileBlock golden_block(std::uint64_t offset) const {
    return ConstFileBlock(disk_.live.data() + offset, kFileBlockBytes);
  }
  void expect_same(ConstFileBlock encoded, std::uint64_t offset) const {
    const ConstFileBlock golden = golden_block(offset);
    EXPECT_TRUE(std::equal(encoded.begin(), encoded.end(), golden.begin()))
        << "block at " << offset;
  }

  MemoryDisk disk_;
  PageFileImage image_;
  std::array<std::byte, kFileBlockBytes> storage_{};
  FileBlock block_{storage_};
};

TEST_F(PageFileGoldenTest, EveryPageIsStillThere) {
  auto reader = open_reader(disk_);
  ASSERT_TRUE(reader.has_value()) << reader.error().message;
  std::map<std::uint64_t, GoldenPage> stored;
  for (const GoldenPage& page : kGoldenContent) stored[page.page] = page;
  EXPECT_EQ((*reader)->layout(), golden_layout());
  for (std::uint64_t page = 0; page < kGoldenPages; ++page) {
    const GoldenPage expected = stored.count(page) != 0 ? stored[page] : GoldenPage{page, 0, 0};
    EXPECT_EQ((*reader)->version(PageIndex{page}), expected.version) << page;
    EXPECT_EQ((*reader)->is_zero(PageIndex{page}), expected.age == 0) << page;
    if (expected.age == 0) continue;
    EXPECT_TRUE(holds(**reader, page, expected.age)) << page;
  }
}

TEST_F(PageFileGoldenTest, HeaderEncodesToTheSameBytes) {
  encode_header(image_.header, block_);
  expect_same(block_, kHeaderOffset);
}

TEST_F(PageFileGoldenTest, CommitRecordEncodesToTheSameBytes) {
  encode_commit(image_.record, block_);
  expect_same(block_, kCommitOffset);
}

TEST_F(PageFileGoldenTest, LayoutEncodesToTheSameBytes) {
  const std::vector<std::byte> table = encode_layout(image_.layout);
  ASSERT_EQ(table.size(), image_.header.layout_bytes);
  std::copy(table.begin(), table.end(), block_.begin());
  expect_same(block_, kLayoutOffset);
}

TEST_F(PageFileGoldenTest, MapBlocksEncodeToTheSameBytes) {
  for (std::uint64_t number = 0; number < image_.header.map_blocks(); ++number) {
    const std::uint64_t offset = image_.header.map_offset + number * kFileBlockBytes;
    std::fill(block_.begin(), block_.end(), std::byte{0});
    for (std::size_t i = 0; i < kMapEntriesPerBlock; ++i) {
      store_map_entry(block_, i, load_map_entry(golden_block(offset), i));
    }
    seal_map_block(image_.header.file_id, number, block_);
    expect_same(block_, offset);
  }
}

TEST_F(PageFileGoldenTest, DeltaEncodesToTheSameBytes) {
  ASSERT_EQ(image_.record.delta_blocks(), 1U);
  const Result<DeltaBlock> delta =
      decode_delta_block(image_.header, 0, golden_block(image_.record.delta_offset));
  ASSERT_TRUE(delta.has_value());
  EXPECT_EQ(delta->entries.size(), 4U);
  encode_delta_block(image_.header.file_id, 0, delta->entries, block_);
  expect_same(block_, image_.record.delta_offset);
}

}  // namespace
}  // namespace pageferry
