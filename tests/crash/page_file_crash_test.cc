// A page file is either committed and complete, or refused, whatever the moment at which the power goes.
//
// Method: a small guest with every kind of page is written to a MemoryDisk, once undisturbed to count writes and syncs, then
// once for each of them with the power cut there. What the disk may then hold is the durable image plus any of the unsynced
// writes: none, all, every second, all but one, halves of them (torn), and random choices from a fixed seed. Each image is
// opened. If the reader takes it, all pages must be exactly the last ones put; if commit() had returned, it must take it.
#include <gtest/gtest.h>
#include <malloc.h>

#include <random>

#include "fakes/page_file_fixture.h"

namespace pageferry {
namespace {

using namespace testing_support;

constexpr std::uint64_t kPages = 330;        // two map blocks
constexpr std::uint64_t kNeverStored = 300;  // from here on
constexpr unsigned kRandomImages = 3;

std::uint64_t final_age(std::uint64_t page) {
  if (page % 11 == 4) return 3;
  return page % 3 == 0 ? 2 : 1;
}
bool is_zero_in_the_end(std::uint64_t page) {
  return page >= kNeverStored || page % 13 == 5;
}

// Everything that happens to a page file; stops at the first error. True when the commit returned success.
bool write_guest(std::unique_ptr<StorageFile> file) {
  PageFileWriterOptions options = small_options();
  options.tail_bytes_max = 0;  // the tail overflows at once: the writes are spread over more places
  auto writer = PageFileWriter::make(std::move(file), fixed_ids(), options, real_clock());
  if (!writer) return false;
  PageFileWriter& sink = **writer;
  if (!sink.begin(layout_of({{"pc.ram", 280}, {"rom", kPages - 280}}))) return false;
  sink.begin_pass(1);
  for (std::uint64_t page = 0; page < kNeverStored; ++page) {
    if (!put(sink, page, 1)) return false;
  }
  sink.begin_pass(2);
  for (std::uint64_t page = 0; page < kNeverStored; page += 3) {
    if (!put(sink, page, 2)) return false;
  }
  for (std::uint64_t page = 5; page < kNeverStored; page += 13) {
    if (!sink.put_zero(PageIndex{page})) return false;
  }
  if (!sink.begin_blackout()) return false;
  for (std::uint64_t page = 4; page < kNeverStored; page += 11) {
    if (!is_zero_in_the_end(page) && !put(sink, page, 3)) return false;
  }
  return sink.finish_and_commit().has_value();
}

enum class Verdict { refused, complete, wrong };

Verdict judge(std::vector<std::byte> image) {
  MemoryDisk disk;
  disk.live = std::move(image);
  auto reader = open_reader(disk);
  if (!reader) return Verdict::refused;
  for (std::uint64_t page = 0; page < kPages; ++page) {
    const bool good = is_zero_in_the_end(page) ? (*reader)->is_zero(PageIndex{page})
                                               : holds(**reader, page, final_age(page));
    if (!good) return Verdict::wrong;
  }
  return Verdict::complete;
}

// The durable image and the first half of each unsynced write.
std::vector<std::byte> torn_image(const MemoryDisk& disk) {
  std::vector<std::byte> image = disk.durable;
  for (const UnsyncedWrite& write : disk.unsynced) {
    MemoryDisk::put(image, write.offset, std::span(write.bytes).first(write.bytes.size() / 2));
  }
  return image;
}

std::vector<std::vector<std::byte>> images_after_cut(const MemoryDisk& disk, std::uint64_t seed) {
  std::vector<std::vector<std::byte>> images;
  const std::size_t writes = disk.unsynced.size();
  images.push_back(disk.after_power_cut([](std::size_t) { return false; }));
  images.push_back(disk.after_power_cut([](std::size_t) { return true; }));
  images.push_back(torn_image(disk));
  if (writes > 1) {
    images.push_back(disk.after_power_cut([](std::size_t i) { return i % 2 == 0; }));
    images.push_back(disk.after_power_cut([&](std::size_t i) { return i + 1 != writes; }));
    images.push_back(disk.after_power_cut([&](std::size_t i) { return i + 1 == writes; }));
    std::mt19937_64 random(seed);
    for (unsigned n = 0; n < kRandomImages; ++n) {
      images.push_back(disk.after_power_cut([&](std::size_t) { return random() % 2 == 0; }));
    }
  }
  return images;
}

// Loses one write that it acknowledged: the data on the disk stays what it was.
class LosingStorage final : public StorageFile {
 public:
  LosingStorage(MemoryDisk& disk, std::uint64_t number)
      : StorageFile("losing", kIoAlignmentBytes, 64), inner_(disk), disk_(disk), lost_(number) {}

 protected:
  Result<void> submit_read_impl(std::span<std::byte> to, std::uint64_t offset, std::uint64_t tag,
                                IoPriority priority) override {
    return inner_.submit_read(to, offset, tag, priority);
  }
  Result<void> submit_write_impl(std::span<const std::byte> from, std::uint64_t offset,
                                 std::uint64_t tag, IoPriority priority) override {
    const bool loses = disk_.operations == lost_;
    const std::vector<std::byte> before = loses ? disk_.live : std::vector<std::byte>();
    Result<void> written = inner_.submit_write(from, offset, tag, priority);
    if (loses) {
      disk_.live = before;
      disk_.live.resize(std::max<std::size_t>(before.size(), offset + from.size()));
    }
    return written;
  }
  Result<void> submit_sync_impl(std::uint64_t tag) override { return inner_.submit_sync(tag); }
  Result<void> submit_allocate_impl(std::uint64_t offset, std::uint64_t length,
                                    std::uint64_t tag) override {
    return inner_.submit_allocate(offset, length, tag);
  }
  void reap_impl(std::vector<IoDone>& done) override { inner_.reap(done); }
  int completion_fd_impl() const override { return inner_.completion_fd(); }
  Result<std::uint64_t> size_impl() const override { return inner_.size(); }

 private:
  MemoryStorage inner_;
  MemoryDisk& disk_;
  std::uint64_t lost_;
};

class PageFileCrashTest : public ::testing::Test {
 protected:
  // Thousands of images come and go: keep their memory instead of giving it back each time. Without effect on the
  // allocators of sanitizers.
  static void SetUpTestSuite() {
    (void)::mallopt(M_MMAP_THRESHOLD, 1 << 30);
    (void)::mallopt(M_TRIM_THRESHOLD, 1 << 30);
  }
};

TEST_F(PageFileCrashTest, UndisturbedItIsCompleteAndDurable) {
  MemoryDisk disk;
  ASSERT_TRUE(write_guest(std::make_unique<MemoryStorage>(disk)));
  EXPECT_EQ(judge(disk.durable), Verdict::complete);
}

TEST_F(PageFileCrashTest, ACutAtAnyWriteOrSyncLeavesItCompleteOrRefused) {
  MemoryDisk whole;
  ASSERT_TRUE(write_guest(std::make_unique<MemoryStorage>(whole)));
  ASSERT_GT(whole.operations, 20U);
  unsigned complete = 0;
  for (std::uint64_t cut = 0; cut < whole.operations; ++cut) {
    MemoryDisk disk;
    disk.power_lost_at = cut;
    ASSERT_FALSE(write_guest(std::make_unique<MemoryStorage>(disk)))
        << "commit succeeded without power at operation " << cut;
    for (std::vector<std::byte>& image : images_after_cut(disk, cut)) {
      const Verdict verdict = judge(std::move(image));
      ASSERT_NE(verdict, Verdict::wrong) << "power cut at operation " << cut;
      complete += verdict == Verdict::complete ? 1U : 0U;
    }
  }
  // Only a cut between the commit record's write and its sync may leave a complete file: where that write was kept.
  EXPECT_GT(complete, 0U);
  EXPECT_LT(complete, 10U);
}

TEST_F(PageFileCrashTest, ALostWriteNeverGoesUnnoticed) {
  MemoryDisk whole;
  ASSERT_TRUE(write_guest(std::make_unique<MemoryStorage>(whole)));
  // The store loses one of the writes that it acknowledged, and says nothing.
  for (std::uint64_t lost = 0; lost < whole.operations; ++lost) {
    MemoryDisk disk;
    ASSERT_TRUE(write_guest(std::make_unique<LosingStorage>(disk, lost)));
    auto reader = open_reader(disk);
    if (!reader) continue;  // refused: noticed
    for (std::uint64_t page = 0; page < kNeverStored; ++page) {
      const std::vector<std::byte> bytes = read_page(**reader, page);
      const PageArray expected =
          is_zero_in_the_end(page) ? PageArray{} : content_of(page, final_age(page));
      EXPECT_TRUE(bytes.empty() || std::equal(bytes.begin(), bytes.end(), expected.begin()))
          << "write " << lost << " was lost, and page " << page << " was handed out wrong";
    }
  }
}

}  // namespace
}  // namespace pageferry
