// The "state" file, version 1 (docs/device-state-format.md gives every byte):
//
//   | header, 64 bytes, own crc32c |
//   | machine type | configuration | RAM blocks | device sections | vmdesc | crc32c of these |
//
// The header holds every length, so a reader knows after 64 checked bytes how long the file must
// be, and looks at nothing else before that is so. One checksum over the rest is enough: the file
// is small (some hundred KiB), written once and read whole.
#include "vmstate/device_state.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "transport/crc32c.h"

namespace pageferry {
namespace {

constexpr std::string_view kMagic("PFSTATE\0", 8);
constexpr std::uint32_t kDeviceStateVersion = 1;
constexpr std::size_t kHeaderBytes = 64;
constexpr std::size_t kHeaderCrcAt = kHeaderBytes - 4;
constexpr std::size_t kBlockFixedBytes =
    24;  // u32 name bytes, u32 zero, u64 length, u64 backing page
constexpr std::size_t kCrcBytes = 4;

using Bytes = std::vector<std::byte>;
using View = std::span<const std::byte>;

template <typename T>
void put_le(Bytes& out, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    out.push_back(static_cast<std::byte>(static_cast<std::uint64_t>(value) >> (8 * i)));
  }
}

template <typename T>
T get_le(View bytes, std::size_t at) {
  std::uint64_t value = 0;
  for (std::size_t i = sizeof(T); i > 0; --i) {
    value = (value << 8) | std::to_integer<std::uint64_t>(bytes[at + i - 1]);
  }
  return static_cast<T>(value);
}

void put_view(Bytes& out, View bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}
void put_text(Bytes& out, std::string_view text) {
  put_view(out, std::as_bytes(std::span(text.data(), text.size())));
}
std::string text_of(View bytes) {
  std::string text(bytes.size(), '\0');
  std::transform(bytes.begin(), bytes.end(), text.begin(),
                 [](std::byte b) { return std::to_integer<char>(b); });
  return text;
}

struct Header {
  std::uint32_t machine_type_bytes = 0;
  std::uint32_t configuration_bytes = 0;
  std::uint32_t blocks = 0;
  std::uint32_t block_table_bytes = 0;
  std::uint64_t device_bytes = 0;
  std::uint64_t vmdesc_bytes = 0;

  std::uint64_t file_bytes() const {
    return kHeaderBytes + machine_type_bytes + configuration_bytes + block_table_bytes +
           device_bytes + vmdesc_bytes + kCrcBytes;
  }
};

void put_header(Bytes& out, const Header& header) {
  put_text(out, kMagic);
  put_le(out, kDeviceStateVersion);
  put_le(out, header.machine_type_bytes);
  put_le(out, header.configuration_bytes);
  put_le(out, header.blocks);
  put_le(out, header.block_table_bytes);
  put_le(out, std::uint32_t{0});
  put_le(out, header.device_bytes);
  put_le(out, header.vmdesc_bytes);
  put_le(out, header.file_bytes());
  put_le(out, std::uint32_t{0});
  put_le(out, crc32c(out));
}

Result<void> check_limit(std::string_view field, std::uint64_t value, std::uint64_t minimum,
                         std::uint64_t maximum) {
  if (value >= minimum && value <= maximum) return {};
  return fail(Errc::corrupt, fmt::format("state file: {} is {}, must be {} to {}", field, value,
                                         minimum, maximum));
}

Result<Header> get_header(View bytes) {
  if (bytes.size() < kHeaderBytes) {
    return fail(Errc::corrupt, fmt::format("state file: {} bytes, the header alone has {}",
                                           bytes.size(), kHeaderBytes));
  }
  if (text_of(bytes.first(kMagic.size())) != kMagic) {
    return fail(Errc::corrupt, "state file: does not begin with PFSTATE, it is not one of ours");
  }
  const auto version = get_le<std::uint32_t>(bytes, 8);
  if (version != kDeviceStateVersion) {
    return fail(Errc::version, fmt::format("state file: version {}, this program reads version {}",
                                           version, kDeviceStateVersion));
  }
  const auto crc = get_le<std::uint32_t>(bytes, kHeaderCrcAt);
  if (const auto actual = crc32c(bytes.first(kHeaderCrcAt)); actual != crc) {
    return fail(Errc::corrupt,
                fmt::format("state file: header checksum {:#010x}, must be {:#010x}", actual, crc));
  }
  Header header;
  header.machine_type_bytes = get_le<std::uint32_t>(bytes, 12);
  header.configuration_bytes = get_le<std::uint32_t>(bytes, 16);
  header.blocks = get_le<std::uint32_t>(bytes, 20);
  header.block_table_bytes = get_le<std::uint32_t>(bytes, 24);
  header.device_bytes = get_le<std::uint64_t>(bytes, 32);
  header.vmdesc_bytes = get_le<std::uint64_t>(bytes, 40);
  PF_TRY(check_limit("machine type length", header.machine_type_bytes, 1, kMachineTypeBytesMax));
  PF_TRY(
      check_limit("configuration length", header.configuration_bytes, 1, kConfigurationBytesMax));
  PF_TRY(check_limit("number of RAM blocks", header.blocks, 1, kBlocksMax));
  PF_TRY(check_limit("RAM block table length", header.block_table_bytes, 1,
                     kBlocksMax * (kBlockFixedBytes + kBlockNameBytesMax)));
  PF_TRY(check_limit("device state length", header.device_bytes, 0, kDeviceStateBytesMax));
  PF_TRY(check_limit("description length", header.vmdesc_bytes, 0, kVmdescBytesMax));
  const auto file_bytes = get_le<std::uint64_t>(bytes, 48);
  if (file_bytes != header.file_bytes() || file_bytes != bytes.size()) {
    return fail(Errc::corrupt,
                fmt::format("state file: {} bytes, its header says {} and its parts add up to {}",
                            bytes.size(), file_bytes, header.file_bytes()));
  }
  return header;
}

void put_blocks(Bytes& out, const MemoryLayout& layout) {
  for (const RamBlock& block : layout.blocks()) {
    put_le(out, static_cast<std::uint32_t>(block.name.size()));
    put_le(out, std::uint32_t{0});
    put_le(out, block.length_bytes);
    put_le(out, block.backing_page_bytes);
    put_text(out, block.name);
  }
}

Result<MemoryLayout> get_blocks(View table, std::uint32_t count) {
  std::vector<RamBlock> blocks;
  for (std::uint32_t i = 0; i < count; ++i) {
    if (table.size() < kBlockFixedBytes) {
      return fail(Errc::corrupt,
                  fmt::format("state file: RAM block table ends in block {} of {}", i, count));
    }
    const auto name_bytes = get_le<std::uint32_t>(table, 0);
    PF_TRY(check_limit("RAM block name length", name_bytes, 1,
                       std::min(kBlockNameBytesMax, table.size() - kBlockFixedBytes)));
    blocks.push_back({.name = text_of(table.subspan(kBlockFixedBytes, name_bytes)),
                      .length_bytes = get_le<std::uint64_t>(table, 8),
                      .backing_page_bytes = get_le<std::uint64_t>(table, 16)});
    table = table.subspan(kBlockFixedBytes + name_bytes);
  }
  if (!table.empty()) {
    return fail(Errc::corrupt,
                fmt::format("state file: {} bytes behind the last RAM block", table.size()));
  }
  auto layout = MemoryLayout::make(std::move(blocks));
  if (!layout) return fail(Errc::corrupt, "state file: " + layout.error().message);
  return layout;
}

}  // namespace

std::vector<std::byte> encode_qemu_state(const QemuState& state) {
  Bytes blocks;
  put_blocks(blocks, state.layout);
  const Header header{
      .machine_type_bytes = static_cast<std::uint32_t>(state.machine_type.size()),
      .configuration_bytes = static_cast<std::uint32_t>(state.configuration.size()),
      .blocks = static_cast<std::uint32_t>(state.layout.blocks().size()),
      .block_table_bytes = static_cast<std::uint32_t>(blocks.size()),
      .device_bytes = state.device_sections.size(),
      .vmdesc_bytes = state.vmdesc_json.size(),
  };
  Bytes out;
  out.reserve(header.file_bytes());
  put_header(out, header);
  put_text(out, state.machine_type);
  put_view(out, state.configuration);
  put_view(out, blocks);
  put_view(out, state.device_sections);
  put_text(out, state.vmdesc_json);
  put_le(out, crc32c(View(out).subspan(kHeaderBytes)));
  return out;
}

Result<QemuState> decode_qemu_state(std::span<const std::byte> bytes) {
  PF_ASSIGN(const Header header, get_header(bytes));
  const View body = bytes.subspan(kHeaderBytes, bytes.size() - kHeaderBytes - kCrcBytes);
  const auto crc = get_le<std::uint32_t>(bytes, bytes.size() - kCrcBytes);
  if (const auto actual = crc32c(body); actual != crc) {
    return fail(Errc::corrupt,
                fmt::format("state file: checksum {:#010x}, must be {:#010x}", actual, crc));
  }
  std::size_t at = 0;
  const auto next = [&](std::uint64_t length) {
    const View part = body.subspan(at, length);
    at += length;
    return part;
  };
  QemuState state;
  state.machine_type = text_of(next(header.machine_type_bytes));
  const View configuration = next(header.configuration_bytes);
  state.configuration.assign(configuration.begin(), configuration.end());
  PF_ASSIGN(state.layout, get_blocks(next(header.block_table_bytes), header.blocks));
  const View devices = next(header.device_bytes);
  state.device_sections.assign(devices.begin(), devices.end());
  state.vmdesc_json = text_of(next(header.vmdesc_bytes));
  return state;
}

}  // namespace pageferry
