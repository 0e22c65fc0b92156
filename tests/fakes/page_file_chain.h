// PageFileChain: page files on memory disks that lean on each other, as those of a guest that came back again and again. File n has ids of
// its own; what a store's directory would say by hard links, `base_opener()` says.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "fakes/page_file_fixture.h"
#include "pager/page_file_verify.h"

namespace pageferry::testing_support {

class PageFileChain {
 public:
  static constexpr std::uint64_t kPages = 600;  // three map blocks
  static constexpr std::uint64_t kMapBytesMax = std::uint64_t{1} << 20;
  static MemoryLayout layout() { return layout_of({{"pc.ram", 560}, {"rom", kPages - 560}}); }

  static PageFileIds ids(unsigned number) {
    PageFileIds ids = fixed_ids();
    ids.file_id[0] = static_cast<std::byte>(number);
    ids.commit_id[0] = static_cast<std::byte>(number);
    return ids;
  }

  using Put = std::function<void(PageFileWriter& sink)>;
  static constexpr unsigned kNone = ~0U;
  // Writes file `number` over file `base`, and commits it. `put` begins with the first pass.
  void write(unsigned number, unsigned base, const Put& put) {
    auto writer = begin(number, base);
    ASSERT_NE(writer, nullptr);
    put(*writer);
    const Result<CommitInfo> info = writer->finish_and_commit();
    ASSERT_TRUE(info.has_value()) << info.error().message;
    stats_ = writer->stats();
  }
  std::unique_ptr<PageFileWriter> begin(unsigned number, unsigned base) {
    auto writer = PageFileWriter::make(std::make_unique<MemoryStorage>(disk(number)), ids(number),
                                       small_options(), real_clock());
    EXPECT_TRUE(writer.has_value());
    EXPECT_TRUE((*writer)->begin(layout()).has_value());
    if (base != kNone) {
      const PageFileImage image = load(base);
      const Result<BasePlan> plan = plan_bases(image);
      EXPECT_TRUE(plan.has_value()) << plan.error().message;
      if (!plan) return nullptr;
      const Result<void> used = (*writer)->use_base(image, *plan);
      EXPECT_TRUE(used.has_value()) << used.error().message;
    }
    (*writer)->begin_pass(1);
    return std::move(*writer);
  }
  // Of the last write().
  const PageFileWriterStats& stats() const { return stats_; }

  MemoryDisk& disk(unsigned number) { return disks_[number]; }
  void drop(unsigned number) { disks_.erase(number); }
  static std::string name(unsigned number) {
    return PageFileBase{ids(number).commit_id, 0}.file_name();
  }
  BaseFileOpener base_opener() {
    return [this](const std::string& wanted) -> Result<std::unique_ptr<StorageFile>> {
      for (auto& [number, disk] : disks_) {
        if (name(number) == wanted) return std::make_unique<MemoryStorage>(disk);
      }
      return fail(Errc::not_found, wanted + ": No such file");
    };
  }

  PageFileImage load(unsigned number) {
    MemoryStorage file(disk(number));
    Result<PageFileImage> image = PageFileImage::load(file, kMapBytesMax, {});
    EXPECT_TRUE(image.has_value()) << image.error().message;
    return image ? std::move(*image) : PageFileImage{};
  }
  Result<std::unique_ptr<PageFileReader>> open(unsigned number) {
    return PageFileReader::open(std::make_unique<MemoryStorage>(disk(number)),
                                small_reader_options(), real_clock(), {}, {}, base_opener());
  }
  VerifyReport verify(unsigned number) {
    const PageFileImage image = load(number);
    MemoryStorage file(disk(number));
    const auto bases = PageFileBases::open(image.header, base_opener(), {});
    EXPECT_TRUE(bases.has_value()) << bases.error().message;
    const auto report = verify_pages(file, image, *bases, {}, {}, {});
    EXPECT_TRUE(report.has_value()) << report.error().message;
    return report.value_or(VerifyReport{});
  }

 private:
  std::map<unsigned, MemoryDisk> disks_;
  PageFileWriterStats stats_;
};

// Every page up to `end`, of that age.
inline void put_all(PageFileWriter& sink, std::uint64_t end, std::uint64_t age) {
  for (std::uint64_t page = 0; page < end; ++page) ASSERT_TRUE(put(sink, page, age));
}

}  // namespace pageferry::testing_support
