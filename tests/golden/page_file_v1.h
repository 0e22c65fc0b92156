// The guest that is in page_file_v1.bin. It must never change; a new format version gets a new guest and a new file.
#pragma once

#include <memory>

#include "fakes/page_file_fixture.h"

namespace pageferry::testing_support {

inline constexpr std::uint64_t kGoldenPages = 260;  // two map blocks

inline MemoryLayout golden_layout() {
  std::vector<RamBlock> blocks(2);
  blocks[0].name = "pc.ram";
  blocks[0].length_bytes = bytes_of_pages(256);
  blocks[1].name = "/rom@etc/acpi/tables";
  blocks[1].length_bytes = bytes_of_pages(4);
  Result<MemoryLayout> layout = MemoryLayout::make(blocks);
  PF_CHECK(layout.has_value());
  return *layout;
}

struct GoldenPage {
  std::uint64_t page = 0;
  std::uint64_t age = 0;  // 0: zero
  std::uint32_t version = 0;
};
inline constexpr GoldenPage kGoldenContent[] = {{0, 1, 1},   {1, 2, 2},   {2, 1, 1},   {5, 0, 2},
                                                {254, 3, 3}, {255, 1, 1}, {258, 3, 3}, {259, 0, 1}};

// Writes the file; how page_file_v1.bin was made.
inline void write_golden(MemoryDisk& disk) {
  PageFileWriterOptions options = small_options();
  options.tail_bytes_max = 0;
  auto writer = PageFileWriter::make(std::make_unique<MemoryStorage>(disk), fixed_ids(), options,
                                     real_clock());
  PF_CHECK(writer.has_value());
  PageFileWriter& sink = **writer;
  const auto must = [](const Result<void>& result) { PF_CHECK(result.has_value()); };
  must(sink.begin(golden_layout()));
  sink.begin_pass(1);
  constexpr std::uint64_t kFirstPass[] = {0, 1, 2, 5, 254, 255};
  for (const std::uint64_t page : kFirstPass) must(put(sink, page, 1));
  must(sink.put_zero(PageIndex{259}));
  sink.begin_pass(2);
  must(put(sink, 1, 2));
  must(sink.put_zero(PageIndex{5}));
  must(sink.begin_blackout());
  must(put(sink, 254, 3));
  must(put(sink, 258, 3));
  const Result<CommitInfo> info = sink.finish_and_commit();
  PF_CHECK(info.has_value());
  // What was reserved beyond it is no part of the image.
  disk.live.resize(info->record.file_bytes);
}

}  // namespace pageferry::testing_support
