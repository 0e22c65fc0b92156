// What a postcopy source sends to a destination QEMU, as bytes: pure builders that append to a
// buffer, in the order in which a restore needs them:
//
//   append_file_header, append_configuration, append_open_return_path, append_postcopy_advise,
//   append_ram_start, append_ram_discard_all, append_packaged(build_device_package(...)), then any
//   number of { append_part_begin, PageRecordWriter::page / zero ..., append_part_end }, at the end
//   append_ram_end_and_eof. After a reconnect: append_recv_bitmap_request per block,
//   append_postcopy_resume, then parts again.
//
// Two traps that the order above avoids (docs/qemu-migration-stream.md): without a RAM_DISCARD
// before LISTEN a destination uses its precopy loader and hangs; a page that is sent twice kills
// it.
//
// Thread rule: free functions are pure; a PageRecordWriter belongs to one channel and one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "pager/memory_layout.h"
#include "pager/page.h"
#include "transport/os/error.h"
#include "vmstate/big_endian.h"

namespace pageferry::qemu_stream {

// The section id we give RAM. Device sections keep the ids of the captured stream, which are small;
// a number that none of them has lets a destination find the right section for each PART.
inline constexpr std::uint32_t kRestoreRamSectionId = 0x0072616d;

void append_file_header(ByteBuffer& out);
// `configuration` as captured, from its type byte on.
void append_configuration(ByteBuffer& out, std::span<const std::byte> configuration);

void append_open_return_path(ByteBuffer& out);
void append_ping(ByteBuffer& out, std::uint32_t value);

// OR of the page sizes of all blocks, which must be the destination's (that of `layout`:
// backing_page_bytes).
std::uint64_t page_size_summary(const MemoryLayout& layout);
void append_postcopy_advise(ByteBuffer& out, const MemoryLayout& layout);

// START of the RAM section with the block list; for a block backed by pages larger than 4096 its
// page size follows its length, which is right only for a stream whose ADVISE was sent.
void append_ram_start(ByteBuffer& out, const MemoryLayout& layout);

// Byte range inside a block; multiples of the block's backing page size.
struct DiscardRange {
  std::uint64_t start_bytes = 0;
  std::uint64_t length_bytes = 0;
};
// Any number of ranges (several commands when they are many). Empty `ranges`: nothing.
void append_ram_discard(ByteBuffer& out, std::string_view block_name,
                        std::span<const DiscardRange> ranges);
// Every block, whole.
void append_ram_discard_all(ByteBuffer& out, const MemoryLayout& layout);

// LISTEN, the captured device sections, PING(ping_value) whose PONG says that the devices are
// loaded, RUN.
ByteBuffer build_device_package(std::span<const std::byte> device_sections,
                                std::uint32_t ping_value);
// Errc::invalid when the package is longer than its u32 length can say.
Result<void> append_packaged(ByteBuffer& out, std::span<const std::byte> package);

// Page records go between these two. On a postcopy-preempt channel records are bare: no part around
// them.
void append_part_begin(ByteBuffer& out);
void append_part_end(ByteBuffer& out);

// END of RAM and end of the stream: after every page of every block was sent.
void append_ram_end_and_eof(ByteBuffer& out);
// The end of a postcopy-preempt channel.
void append_preempt_channel_end(ByteBuffer& out);

void append_recv_bitmap_request(ByteBuffer& out, std::string_view block_name);
void append_postcopy_resume(ByteBuffer& out);

// Page records of one channel. It remembers the block of the record before, as the receiver does:
// make a new one (or reset()) for each connection.
class PageRecordWriter {
 public:
  // `layout` outlives the writer.
  explicit PageRecordWriter(const MemoryLayout& layout) : layout_(&layout) {}

  // Preconditions for all: raw(page) < layout.pages().
  // The header alone; the page's bytes must follow on the wire (for a caller that gathers with
  // writev).
  void page_header(ByteBuffer& out, PageIndex page);
  void page(ByteBuffer& out, PageIndex page, PageBytes bytes);
  void zero(ByteBuffer& out, PageIndex page);
  void reset() { last_block_ = kNoBlock; }

 private:
  static constexpr std::size_t kNoBlock = ~std::size_t{0};
  void record_header(ByteBuffer& out, PageIndex page, std::uint64_t flag);

  const MemoryLayout* layout_;
  std::size_t last_block_ = kNoBlock;
};

}  // namespace pageferry::qemu_stream
