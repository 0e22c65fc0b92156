// Builders of the source side of a postcopy migration. Each function is one record of
// docs/qemu-migration-stream.md; nothing here reads, waits or keeps state, except the "same block
// as before" memory of a channel (PageRecordWriter).
#include "vmstate/qemu_stream_writer.h"

#include <algorithm>
#include <limits>

#include <fmt/core.h>

#include "vmstate/qemu_stream_format.h"

namespace pageferry::qemu_stream {
namespace {

// QEMU itself sends 12 ranges a command; the receiver takes what the u16 length can say. 512 keep a
// command below 9 KiB.
constexpr std::size_t kDiscardRangesPerCommand = 512;

void append_type(ByteBuffer& out, RecordType type) {
  out.push_back(static_cast<std::byte>(type));
}

// Precondition: payload.size() fits the u16 length.
void append_command(ByteBuffer& out, Command command, std::span<const std::byte> payload) {
  PF_CHECK(payload.size() <= std::numeric_limits<std::uint16_t>::max());
  append_type(out, RecordType::command);
  put_be(out, static_cast<std::uint16_t>(command));
  put_be(out, static_cast<std::uint16_t>(payload.size()));
  put_bytes(out, payload);
}

void append_footer(ByteBuffer& out) {
  append_type(out, RecordType::section_footer);
  put_be(out, kRestoreRamSectionId);
}

}  // namespace

void append_file_header(ByteBuffer& out) {
  put_be(out, kFileMagic);
  put_be(out, kFileVersion);
}

void append_configuration(ByteBuffer& out, std::span<const std::byte> configuration) {
  put_bytes(out, configuration);
}

void append_open_return_path(ByteBuffer& out) {
  append_command(out, Command::open_return_path, {});
}

void append_ping(ByteBuffer& out, std::uint32_t value) {
  ByteBuffer payload;
  put_be(payload, value);
  append_command(out, Command::ping, payload);
}

std::uint64_t page_size_summary(const MemoryLayout& layout) {
  std::uint64_t summary = 0;
  for (const RamBlock& block : layout.blocks()) summary |= block.backing_page_bytes;
  return summary;
}

void append_postcopy_advise(ByteBuffer& out, const MemoryLayout& layout) {
  ByteBuffer payload;
  put_be(payload, page_size_summary(layout));
  put_be(payload, std::uint64_t{kPageSizeBytes});
  append_command(out, Command::postcopy_advise, payload);
}

void append_ram_start(ByteBuffer& out, const MemoryLayout& layout) {
  append_type(out, RecordType::section_start);
  put_be(out, kRestoreRamSectionId);
  put_counted_string(out, kRamIdstr);
  put_be(out, kRamInstance);
  put_be(out, kRamVersion);
  put_be(out, layout.bytes() | kRamFlagMemSize);
  for (const RamBlock& block : layout.blocks()) {
    put_counted_string(out, block.name);
    put_be(out, block.length_bytes);
    if (block.backing_page_bytes != kPageSizeBytes) put_be(out, block.backing_page_bytes);
  }
  put_be(out, kRamFlagEos);
  append_footer(out);
}

void append_ram_discard(ByteBuffer& out, std::string_view block_name,
                        std::span<const DiscardRange> ranges) {
  while (!ranges.empty()) {
    const auto chunk = ranges.first(std::min(ranges.size(), kDiscardRangesPerCommand));
    ByteBuffer payload;
    put_be(payload, std::uint8_t{0});  // version of the command
    put_counted_string(payload, block_name);
    put_be(payload, std::uint8_t{0});  // the name's terminator
    for (const DiscardRange& range : chunk) {
      put_be(payload, range.start_bytes);
      put_be(payload, range.length_bytes);
    }
    append_command(out, Command::postcopy_ram_discard, payload);
    ranges = ranges.subspan(chunk.size());
  }
}

void append_ram_discard_all(ByteBuffer& out, const MemoryLayout& layout) {
  for (const RamBlock& block : layout.blocks()) {
    const DiscardRange whole{.start_bytes = 0, .length_bytes = block.length_bytes};
    append_ram_discard(out, block.name, {&whole, 1});
  }
}

ByteBuffer build_device_package(std::span<const std::byte> device_sections,
                                std::uint32_t ping_value) {
  ByteBuffer package;
  package.reserve(device_sections.size() + 64);
  append_command(package, Command::postcopy_listen, {});
  put_bytes(package, device_sections);
  append_ping(package, ping_value);
  append_command(package, Command::postcopy_run, {});
  return package;
}

Result<void> append_packaged(ByteBuffer& out, std::span<const std::byte> package) {
  if (package.size() > std::numeric_limits<std::uint32_t>::max()) {
    return fail(Errc::invalid,
                fmt::format("device package of {} bytes: the limit is {}", package.size(),
                            std::numeric_limits<std::uint32_t>::max()));
  }
  ByteBuffer length;
  put_be(length, static_cast<std::uint32_t>(package.size()));
  append_command(out, Command::packaged, length);
  put_bytes(out, package);
  return {};
}

void append_part_begin(ByteBuffer& out) {
  append_type(out, RecordType::section_part);
  put_be(out, kRestoreRamSectionId);
}

void append_part_end(ByteBuffer& out) {
  put_be(out, kRamFlagEos);
  append_footer(out);
}

void append_ram_end_and_eof(ByteBuffer& out) {
  append_type(out, RecordType::section_end);
  put_be(out, kRestoreRamSectionId);
  put_be(out, kRamFlagEos);
  append_footer(out);
  append_type(out, RecordType::eof);
}

void append_preempt_channel_end(ByteBuffer& out) {
  put_be(out, kRamFlagEos);
}

void append_recv_bitmap_request(ByteBuffer& out, std::string_view block_name) {
  ByteBuffer payload;
  put_counted_string(payload, block_name);
  append_command(out, Command::recv_bitmap, payload);
}

void append_postcopy_resume(ByteBuffer& out) {
  append_command(out, Command::postcopy_resume, {});
}

void PageRecordWriter::page_header(ByteBuffer& out, PageIndex page) {
  record_header(out, page, kRamFlagPage);
}

void PageRecordWriter::page(ByteBuffer& out, PageIndex page, PageBytes bytes) {
  record_header(out, page, kRamFlagPage);
  put_bytes(out, bytes);
}

void PageRecordWriter::zero(ByteBuffer& out, PageIndex page) {
  record_header(out, page, kRamFlagZero);
  put_be(out, std::uint8_t{0});
}

void PageRecordWriter::record_header(ByteBuffer& out, PageIndex page, std::uint64_t flag) {
  const std::size_t block_index = layout_->block_of(page);
  const RamBlock& block = layout_->blocks()[block_index];
  const std::uint64_t offset = bytes_of_pages(page - block.first_page);
  if (block_index == last_block_) {
    put_be(out, offset | flag | kRamFlagContinue);
    return;
  }
  put_be(out, offset | flag);
  put_counted_string(out, block.name);
  last_block_ = block_index;
}

}  // namespace pageferry::qemu_stream
