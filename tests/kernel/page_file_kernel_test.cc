// A page file on the real file system of the temporary directory, and on tmpfs, written and read as a migration does it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "fakes/page_file_fixture.h"
#include "fakes/scratch_directory.h"
#include "pager/page_file_verify.h"
#include "transport/aio_file.h"
#include "transport/faulty_file.h"
#include "transport/threaded_file.h"

namespace pageferry {
namespace {

using namespace testing_support;

constexpr std::uint64_t kStoredPages = 6000;
constexpr unsigned kQueueDepth = 64;

std::uint64_t age_of(std::uint64_t page) {
  if (page % 9 == 1) return 3;
  return page % 5 == 0 ? 2 : 1;
}
bool is_zero(std::uint64_t page) {
  return page % 4 == 3;
}

class Store {
 public:
  explicit Store(const std::string& path)
      : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {}

  std::unique_ptr<StorageFile> create(std::string_view faults) const {
    auto file = AioFile::create(fd_.get(), "pages", path_, {kQueueDepth, Milliseconds(500)});
    EXPECT_TRUE(file.has_value()) << file.error().message;
    std::unique_ptr<StorageFile> inner = std::move(*file);
    if (!faults.empty()) {
      auto faulty = FaultyFile::over(std::move(inner), *parse_storage_faults(faults), real_clock());
      EXPECT_TRUE(faulty.has_value());
      inner = std::move(*faulty);
    }
    auto threaded = ThreadedFile::over(std::move(inner), Milliseconds(500));
    EXPECT_TRUE(threaded.has_value());
    return std::move(*threaded);
  }
  Result<std::unique_ptr<AioFile>> open() const {
    return AioFile::open(fd_.get(), "pages", path_, {kQueueDepth, Milliseconds(500)});
  }

 private:
  std::string path_;
  UniqueFd fd_;
};

Result<CommitInfo> write_guest(PageFileWriter& writer) {
  writer.begin_pass(1);
  for (std::uint64_t page = 0; page < kStoredPages; ++page) {
    PF_TRY(is_zero(page) ? writer.put_zero(PageIndex{page}) : put(writer, page, 1));
  }
  writer.begin_pass(2);
  for (std::uint64_t page = 0; page < kStoredPages; page += 5) {
    if (!is_zero(page)) PF_TRY(put(writer, page, 2));
  }
  PF_TRY(writer.begin_blackout());
  for (std::uint64_t page = 1; page < kStoredPages; page += 9) {
    if (!is_zero(page)) PF_TRY(put(writer, page, 3));
  }
  return writer.finish_and_commit();
}

void write_read_verify(const std::string& path) {
  const Store store(path);
  const auto writer =
      writer_on(store.create(""), layout_of({{"pc.ram", kStoredPages}}), PageFileWriterOptions{});
  ASSERT_NE(writer, nullptr);
  const Result<CommitInfo> info = write_guest(*writer);
  ASSERT_TRUE(info.has_value()) << info.error().message;
  auto file = store.open();
  ASSERT_TRUE(file.has_value()) << file.error().message;
  auto reader = open_reader(std::move(*file));
  ASSERT_TRUE(reader.has_value()) << reader.error().message;
  for (std::uint64_t page = 0; page < kStoredPages; ++page) {
    ASSERT_EQ((*reader)->is_zero(PageIndex{page}), is_zero(page)) << page;
    if (is_zero(page)) continue;
    ASSERT_TRUE(holds(**reader, page, age_of(page))) << page;
  }
  auto again = store.open();
  ASSERT_TRUE(again.has_value());
  const auto image = PageFileImage::load(**again, std::uint64_t{1} << 20, {});
  ASSERT_TRUE(image.has_value());
  const auto report = verify_pages(**again, *image, {}, {}, {}, {});
  ASSERT_TRUE(report.has_value()) << report.error().message;
  EXPECT_EQ(report->bad_pages, 0U);
  EXPECT_EQ(report->pages_checked, info->record.stored_pages);
}

TEST(PageFileKernelTest, AGuestComesBackFromTheFileSystem) {
  const ScratchDirectory scratch;
  write_read_verify(scratch.path());
}

// Fails, loudly, where there is no tmpfs at the usual place.
TEST(PageFileKernelTest, AGuestComesBackFromTmpfs) {
  const std::string path = "/dev/shm/pageferry-test-" + std::to_string(::getpid());
  ASSERT_TRUE(std::filesystem::create_directory(path));
  write_read_verify(path);
  std::filesystem::remove_all(path);
}

TEST(PageFileKernelTest, AHangingStoreHoldsUpNeitherAbortNorDestruction) {
  const ScratchDirectory scratch;
  const Store store(scratch.path());
  PageFileWriterOptions options;
  options.close_wait = Milliseconds(10);
  auto writer =
      writer_on(store.create("write:after=8:hang"), layout_of({{"pc.ram", kStoredPages}}), options);
  ASSERT_NE(writer, nullptr);
  std::jthread aborts([&] {
    while (writer->stats().put_pages < kStoredPages / 2) std::this_thread::yield();
    writer->cancel();
  });
  const Result<CommitInfo> info = write_guest(*writer);
  ASSERT_FALSE(info.has_value());
  EXPECT_EQ(info.error().code, Errc::canceled);
  aborts.join();
  writer.reset();
}

TEST(PageFileKernelTest, AFailedSyncLeavesAnUncommittedFile) {
  const ScratchDirectory scratch;
  const Store store(scratch.path());
  const auto writer = writer_on(store.create("sync:nth=2:eio"),
                                layout_of({{"pc.ram", kStoredPages}}), PageFileWriterOptions{});
  ASSERT_NE(writer, nullptr);
  const Result<CommitInfo> info = write_guest(*writer);
  ASSERT_FALSE(info.has_value());
  EXPECT_EQ(info.error().code, Errc::io);
  auto file = store.open();
  ASSERT_TRUE(file.has_value());
  auto reader = open_reader(std::move(*file));
  ASSERT_FALSE(reader.has_value());
  EXPECT_NE(reader.error().message.find("not committed"), std::string::npos);
}

}  // namespace
}  // namespace pageferry
