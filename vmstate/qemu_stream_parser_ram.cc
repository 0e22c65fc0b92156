// The RAM section's records: block list, pages, zero pages. parse_ram_records is the one hot loop
// of a capture; what it does not recognise at a glance goes to the slow functions, which say what
// is wrong.
#include "vmstate/qemu_stream_parser.h"

#include <fmt/core.h>

#include <algorithm>
#include <string>

#include "vmstate/big_endian.h"

namespace pageferry::qemu_stream {
namespace {

std::string name_of(std::span<const std::byte> bytes) {
  std::string name(bytes.size(), '\0');
  for (std::size_t i = 0; i < bytes.size(); ++i) name[i] = std::to_integer<char>(bytes[i]);
  return name;
}

bool is_printable(const std::string& name) {
  return std::all_of(name.begin(), name.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

// The name of a record that is refused, or nullptr when `flags` is not one of them.
const char* refused_ram_record(std::uint64_t flags) {
  switch (flags & ~kRamFlagContinue) {
    case kRamFlagFull:
      return "FULL (obsolete)";
    case kRamFlagXbzrle:
      return "XBZRLE (capability xbzrle)";
    case kRamFlagHook:
      return "HOOK (RDMA)";
    case kRamFlagCompressPage:
      return "COMPRESS_PAGE (capability compress)";
    case kRamFlagMultifdFlush:
      return "MULTIFD_FLUSH (capability multifd)";
    default:
      return nullptr;
  }
}

}  // namespace

// Pages that continue their block are all but a few of a stream: this loop takes them as they lie
// there.
StreamParser::Step StreamParser::parse_ram_records(std::span<const std::byte> bytes) {
  std::size_t used = 0;
  if (block_selected_) {
    while (bytes.size() - used >= kContinuedPageRecordBytes) {
      const auto word = get_be<std::uint64_t>(bytes.subspan(used, sizeof(std::uint64_t)));
      const std::uint64_t offset = word & ~kRamFlagsMask;
      if ((word & kRamFlagsMask) != (kRamFlagPage | kRamFlagContinue) ||
          offset >= block_length_bytes_) {
        break;
      }
      PF_TRY(sink_->put_page(block_first_ + pages_of_bytes(offset),
                             PageBytes(bytes.data() + used + sizeof word, kPageSizeBytes)));
      ++pages_;
      used += kContinuedPageRecordBytes;
    }
  }
  if (used > 0) return used;
  return parse_slow_ram_record(bytes);
}

StreamParser::Step StreamParser::parse_slow_ram_record(std::span<const std::byte> bytes) {
  if (bytes.size() < sizeof(std::uint64_t)) return 0;
  const auto word = get_be<std::uint64_t>(bytes);
  const std::uint64_t flags = word & kRamFlagsMask;
  if (flags == kRamFlagEos) {
    state_ = State::section_footer;
    return sizeof word;
  }
  if (flags == kRamFlagMemSize) {
    PF_TRY(begin_block_list(word & ~kRamFlagsMask));
    return sizeof word;
  }
  if (const char* refused = refused_ram_record(flags)) {
    return fail(Errc::unsupported,
                fmt::format("migration stream: RAM record {} is refused", refused));
  }
  const std::uint64_t kind = flags & ~kRamFlagContinue;
  if (kind != kRamFlagPage && kind != kRamFlagZero) {
    return fail(Errc::invalid, fmt::format("migration stream: RAM record with flags {:#x}", flags));
  }
  if (!setup_complete_) return fail(Errc::invalid, "migration stream: a page in the setup");
  return parse_page_record(bytes, word);
}

StreamParser::Step StreamParser::parse_page_record(std::span<const std::byte> bytes,
                                                   std::uint64_t word) {
  std::size_t used = sizeof word;
  const bool zero = (word & kRamFlagZero) != 0;
  const std::size_t content = zero ? 1 : kPageSizeBytes;
  std::span<const std::byte> name;
  if ((word & kRamFlagContinue) == 0) {
    if (bytes.size() < used + kNameLengthBytes) return 0;
    name = bytes.subspan(used + kNameLengthBytes);
    const auto name_bytes = std::to_integer<std::size_t>(bytes[used]);
    used += kNameLengthBytes + name_bytes;
    if (bytes.size() < used + content) return 0;
    PF_TRY(select_block(name.first(name_bytes)));
  } else if (!block_selected_) {
    return fail(Errc::invalid, "migration stream: a page continues a block, but none was named");
  }
  if (bytes.size() < used + content) return 0;
  const std::uint64_t offset = word & ~kRamFlagsMask;
  if (offset >= block_length_bytes_) {
    return fail(
        Errc::invalid,
        fmt::format("migration stream: page at {:#x} of RAM block \"{}\", which has {:#x} bytes",
                    offset, result_.layout.blocks()[block_index_].name, block_length_bytes_));
  }
  const PageIndex page = block_first_ + pages_of_bytes(offset);
  if (!zero) {
    PF_TRY(sink_->put_page(page, PageBytes(bytes.data() + used, kPageSizeBytes)));
    ++pages_;
  } else if (bytes[used] == std::byte{0}) {
    PF_TRY(sink_->put_zero(page));
    ++zero_pages_;
  } else {
    return fail(Errc::unsupported,
                fmt::format("migration stream: page filled with {:#04x}, only zero is supported",
                            std::to_integer<unsigned>(bytes[used])));
  }
  return used + content;
}

Result<void> StreamParser::select_block(std::span<const std::byte> name) {
  const std::string text = name_of(name);
  const auto index = result_.layout.find_block(text);
  if (!index) {
    if (!is_printable(text))
      return fail(Errc::invalid, "migration stream: page of an unprintable RAM block");
    return fail(Errc::invalid,
                fmt::format("migration stream: page of unknown RAM block \"{}\"", text));
  }
  const RamBlock& block = result_.layout.blocks()[*index];
  block_selected_ = true;
  block_index_ = *index;
  block_first_ = block.first_page;
  block_length_bytes_ = block.length_bytes;
  return {};
}

Result<void> StreamParser::begin_block_list(std::uint64_t total_bytes) {
  if (section_ != Section::start || result_.layout.pages() != 0) {
    return fail(Errc::invalid,
                "migration stream: a RAM block list outside the setup, or a second one");
  }
  if (total_bytes == 0 || total_bytes > kMemoryBytesMax) {
    return fail(Errc::invalid,
                fmt::format("migration stream: guest memory of {} bytes, must be 1 to {}",
                            total_bytes, kMemoryBytesMax));
  }
  block_list_missing_bytes_ = total_bytes;
  state_ = State::block_list;
  return {};
}

StreamParser::Step StreamParser::parse_block(std::span<const std::byte> bytes) {
  const auto name_bytes = std::to_integer<std::size_t>(bytes[0]);
  const std::size_t size = kNameLengthBytes + name_bytes + sizeof(std::uint64_t);
  if (bytes.size() < size) return 0;
  RamBlock block;
  block.name = name_of(bytes.subspan(kNameLengthBytes, name_bytes));
  block.length_bytes = get_be<std::uint64_t>(bytes.subspan(kNameLengthBytes + name_bytes));
  if (!is_printable(block.name)) {
    return fail(
        Errc::invalid,
        fmt::format("migration stream: name of RAM block {} is not printable", block_list_.size()));
  }
  if (block.length_bytes == 0 || block.length_bytes > block_list_missing_bytes_) {
    return fail(Errc::invalid,
                fmt::format("migration stream: RAM block \"{}\" of {} bytes, of which {} are left",
                            block.name, block.length_bytes, block_list_missing_bytes_));
  }
  if (block_list_.size() == kBlocksMax) {
    return fail(Errc::invalid,
                fmt::format("migration stream: more than {} RAM blocks", kBlocksMax));
  }
  block_list_missing_bytes_ -= block.length_bytes;
  block_list_.push_back(std::move(block));
  if (block_list_missing_bytes_ == 0) PF_TRY(end_block_list());
  return size;
}

Result<void> StreamParser::end_block_list() {
  auto layout = MemoryLayout::make(std::move(block_list_));
  if (!layout) return with_context(layout.error(), "migration stream");
  result_.layout = std::move(*layout);
  state_ = State::section_payload;
  return {};
}

}  // namespace pageferry::qemu_stream
