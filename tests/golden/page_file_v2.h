// The guest that is in page_file_v2.bin: that of page_file_v1.bin, which is its base, after it ran on. It must never change; a new format
// version gets a new guest and a new file.
#pragma once

#include <memory>

#include "golden/page_file_v1.h"

namespace pageferry::testing_support {

// As age and version of GoldenPage; version 0: still in page_file_v1.bin.
inline constexpr GoldenPage kGoldenContentV2[] = {{0, 1, 0},   {1, 5, 2},   {2, 0, 1},
                                                  {5, 4, 1},   {100, 6, 3}, {254, 6, 3},
                                                  {255, 1, 0}, {258, 3, 0}, {259, 0, 0}};

inline PageFileIds golden_ids_v2() {
  PageFileIds ids;
  for (std::size_t i = 0; i < ids.file_id.size(); ++i) {
    ids.file_id[i] = static_cast<std::byte>(0xb0 + i);
    ids.commit_id[i] = static_cast<std::byte>(0xd0 + i);
  }
  return ids;
}

// Opens page_file_v1.bin, which lies on `base`.
inline BaseFileOpener golden_base(MemoryDisk& base) {
  return [&base](const std::string& name) -> Result<std::unique_ptr<StorageFile>> {
    if (name == "base.c0c1c2c3c4c5c6c7c8c9cacbcccdcecf") {
      return std::make_unique<MemoryStorage>(base);
    }
    return fail(Errc::not_found, name + ": No such file");
  };
}

// Writes the file over `base`; how page_file_v2.bin was made.
inline void write_golden_v2(MemoryDisk& disk, MemoryDisk& base) {
  PageFileWriterOptions options = small_options();
  options.tail_bytes_max = 0;
  auto writer = PageFileWriter::make(std::make_unique<MemoryStorage>(disk), golden_ids_v2(),
                                     options, real_clock());
  PF_CHECK(writer.has_value());
  PageFileWriter& sink = **writer;
  const auto must = [](const Result<void>& result) { PF_CHECK(result.has_value()); };
  must(sink.begin(golden_layout()));
  MemoryStorage file(base);
  const auto image = PageFileImage::load(file, std::uint64_t{1} << 20, {});
  PF_CHECK(image.has_value());
  const auto plan = plan_bases(*image);
  PF_CHECK(plan.has_value());
  must(sink.use_base(*image, *plan));
  sink.begin_pass(1);
  must(put(sink, 1, 4));
  must(sink.put_zero(PageIndex{2}));
  must(put(sink, 5, 4));
  sink.begin_pass(2);
  must(put(sink, 1, 5));
  must(sink.begin_blackout());
  must(put(sink, 100, 6));
  must(put(sink, 254, 6));
  const Result<CommitInfo> info = sink.finish_and_commit();
  PF_CHECK(info.has_value());
  // What was reserved beyond it is no part of the image.
  disk.live.resize(info->record.file_bytes);
}

}  // namespace pageferry::testing_support
