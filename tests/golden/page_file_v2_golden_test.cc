// A page file of format version 2 over the golden one of version 1, made once and kept: both must be readable for ever, and what is decoded
// must encode to the same bytes. A failure here means that the format changed: raise the version, keep these files.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <map>

#include "golden/page_file_v2.h"
#include "pager/page_file_verify.h"

namespace pageferry {
namespace {

using namespace testing_support;

class PageFileV2GoldenTest : public ::testing::Test {
 protected:
  static void read_into(MemoryDisk& disk, const std::string& name) {
    std::ifstream in(PAGEFERRY_GOLDEN_DIR "/" + name, std::ios::binary);
    ASSERT_TRUE(in.good()) << name;
    const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
    for (char c : bytes) disk.live.push_back(static_cast<std::byte>(c));
  }
  void SetUp() override {
    read_into(base_, "page_file_v1.bin");
    read_into(disk_, "page_file_v2.bin");
    MemoryStorage file(disk_);
    Result<PageFileImage> image = PageFileImage::load(file, std::uint64_t{1} << 20, {});
    ASSERT_TRUE(image.has_value()) << image.error().message;
    image_ = std::move(*image);
  }
  void expect_same(ConstFileBlock encoded, std::uint64_t offset) const {
    const ConstFileBlock golden(disk_.live.data() + offset, kFileBlockBytes);
    EXPECT_TRUE(std::equal(encoded.begin(), encoded.end(), golden.begin()))
        << "block at " << offset;
  }

  MemoryDisk base_;
  MemoryDisk disk_;
  PageFileImage image_;
  std::array<std::byte, kFileBlockBytes> storage_{};
  FileBlock block_{storage_};
};

TEST_F(PageFileV2GoldenTest, EveryPageIsStillThere) {
  auto reader = PageFileReader::open(std::make_unique<MemoryStorage>(disk_), small_reader_options(),
                                     real_clock(), {}, {}, golden_base(base_));
  ASSERT_TRUE(reader.has_value()) << reader.error().message;
  std::map<std::uint64_t, GoldenPage> stored;
  for (const GoldenPage& page : kGoldenContentV2) stored[page.page] = page;
  for (std::uint64_t page = 0; page < kGoldenPages; ++page) {
    const GoldenPage expected = stored.count(page) != 0 ? stored[page] : GoldenPage{page, 0, 0};
    EXPECT_EQ((*reader)->version(PageIndex{page}), expected.version) << page;
    EXPECT_EQ((*reader)->is_zero(PageIndex{page}), expected.age == 0) << page;
    if (expected.age == 0) continue;
    EXPECT_TRUE(holds(**reader, page, expected.age)) << page;
  }
}

TEST_F(PageFileV2GoldenTest, ItNamesTheGoldenFileOfVersion1) {
  ASSERT_EQ(image_.header.bases.size(), 1U);
  EXPECT_EQ(image_.header.bases[0].file_name(), "base.c0c1c2c3c4c5c6c7c8c9cacbcccdcecf");
  EXPECT_EQ(image_.header.bases[0].file_bytes, base_.live.size());
  EXPECT_EQ(image_.record.base_pages, 3U);
}

TEST_F(PageFileV2GoldenTest, HeaderEncodesToTheSameBytes) {
  encode_header(image_.header, block_);
  expect_same(block_, kHeaderOffset);
}

TEST_F(PageFileV2GoldenTest, CommitRecordEncodesToTheSameBytes) {
  encode_commit(image_.record, block_);
  expect_same(block_, kCommitOffset);
}

TEST_F(PageFileV2GoldenTest, TheSameGuestIsWrittenTheSame) {
  MemoryDisk again;
  write_golden_v2(again, base_);
  EXPECT_TRUE(again.live == disk_.live);
}

}  // namespace
}  // namespace pageferry
