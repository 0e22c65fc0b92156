// Making and reading small page files on a MemoryDisk, for every test that needs one.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>

#include <memory>
#include <utility>
#include <vector>

#include "fakes/expectations.h"
#include "fakes/memory_storage.h"
#include "fakes/page_content.h"
#include "pager/page_file_reader.h"
#include "pager/page_file_writer.h"

namespace pageferry::testing_support {

inline PageFileIds fixed_ids() {
  PageFileIds ids;
  for (std::size_t i = 0; i < ids.file_id.size(); ++i) {
    ids.file_id[i] = static_cast<std::byte>(0xa0 + i);
    ids.commit_id[i] = static_cast<std::byte>(0xc0 + i);
  }
  return ids;
}

inline PageFileWriterOptions small_options() {
  PageFileWriterOptions options;
  options.tail_bytes_max = std::uint64_t{1} << 20;
  options.chunk_bytes = std::size_t{64} << 10;
  options.chunks = 8;
  return options;
}

inline std::unique_ptr<PageFileWriter> writer_on(std::unique_ptr<StorageFile> file,
                                                 const MemoryLayout& layout,
                                                 const PageFileWriterOptions& options) {
  auto writer = PageFileWriter::make(std::move(file), fixed_ids(), options, real_clock());
  EXPECT_TRUE(writer.has_value()) << writer.error().message;
  if (!writer) return nullptr;
  const Result<void> begun = (*writer)->begin(layout);
  EXPECT_TRUE(begun.has_value()) << begun.error().message;
  return std::move(*writer);
}

inline std::unique_ptr<PageFileWriter> writer_on(MemoryDisk& disk, const MemoryLayout& layout) {
  return writer_on(std::make_unique<MemoryStorage>(disk), layout, small_options());
}

inline Result<void> put(PageSink& sink, std::uint64_t page, std::uint64_t age) {
  const PageArray content = content_of(page, age);
  return sink.put_page(PageIndex{page}, content);
}

inline PageFileReaderOptions small_reader_options() {
  PageFileReaderOptions options;
  options.read_bytes_max = std::size_t{64} << 10;
  options.demand_slots = 8;
  options.prefetch_slots = 4;
  options.attempts = 2;
  options.retry_delay = Milliseconds(0);
  return options;
}

inline Result<std::unique_ptr<PageFileReader>> open_reader(std::unique_ptr<StorageFile> file) {
  return PageFileReader::open(std::move(file), small_reader_options(), real_clock(), {});
}

inline Result<std::unique_ptr<PageFileReader>> open_reader(MemoryDisk& disk) {
  return open_reader(std::make_unique<MemoryStorage>(disk));
}

// Waits for one finished read.
inline ReadDone next_done(PageSupply& supply) {
  for (;;) {
    std::vector<ReadDone> done = supply.poll();
    EXPECT_LE(done.size(), 1U);
    if (!done.empty()) return std::move(done.front());
    pollfd waiting{supply.ready_fd(), POLLIN, 0};
    const int ready = ::poll(&waiting, 1, 30'000);
    EXPECT_EQ(ready, 1) << "no completion within 30 s";
  }
}

// The page's content as the supply tells it; empty after a read that failed.
inline std::vector<std::byte> read_page(PageSupply& supply, std::uint64_t page) {
  if (supply.is_zero(PageIndex{page})) return std::vector<std::byte>(kPageSizeBytes);
  const Result<std::uint64_t> ticket = supply.start_read({PageIndex{page}, 1}, ReadClass::demand);
  EXPECT_TRUE(ticket.has_value());
  if (!ticket) return {};
  const ReadDone done = next_done(supply);
  std::vector<std::byte> bytes;
  if (done.bytes) bytes.assign(done.bytes->begin(), done.bytes->end());
  supply.release(done.ticket);
  return bytes;
}

inline bool holds(PageSupply& supply, std::uint64_t page, std::uint64_t age) {
  const PageArray content = content_of(page, age);
  return read_page(supply, page) == std::vector<std::byte>(content.begin(), content.end());
}

}  // namespace pageferry::testing_support
