// The members of a memory map and their limits. A wrong address is as bad as a wrong page: addresses have to be aligned, inside what a
// process can have, and apart from each other; the checksum of the text is for what still looks right.
#include "vmstate/qemu_memory_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "vmstate/checked_json.h"
#include "vmstate/qemu_process.h"
#include "vmstate/ram_block_json.h"
#include "vmstate/run_directory.h"

namespace pageferry {
namespace {

using nlohmann::json;

constexpr CheckedJsonFormat kFormat = {.what = "memory map",
                                       .name = "pageferry-memory-map",
                                       .version = kMemoryMapVersion,
                                       .bytes_max = kMemoryMapBytesMax};
constexpr std::size_t kWordBytesMax = 16;
constexpr std::uint64_t kQemuVersionMax = 999999;
constexpr std::uint64_t kNumberMax = std::numeric_limits<std::uint64_t>::max();

bool is_direct(const QemuMemoryMap& map) {
  return map.placement == PagePlacement::direct;
}

json to_json(const QemuMemoryMap& map) {
  json blocks = json::array();
  for (std::size_t i = 0; i < map.layout.blocks().size(); ++i) {
    const RamBlock& block = map.layout.blocks()[i];
    blocks.push_back(ram_block_to_json(block));
    if (is_direct(map)) blocks.back()["host-address"] = map.block_addresses[i];
  }
  return {{"process", {{"pid", map.process.pid}, {"start-ticks", map.process.start_ticks}}},
          {"qemu-version", map.qemu_version},
          {"placement", is_direct(map) ? "direct" : "stream"},
          {"out-of-band-inode", map.out_of_band_inode},
          {"blocks", std::move(blocks)}};
}

Result<void> process_from_json(const json& object, QemuMemoryMap& map) {
  JsonMembers process(object, kFormat, "process");
  map.process.pid = static_cast<pid_t>(process.number("pid", 1, kPidMax));
  map.process.start_ticks = process.number("start-ticks", 0, kNumberMax);
  return process.finish();
}

Result<std::uint64_t> address_from_json(JsonMembers& members, const RamBlock& block) {
  const std::uint64_t address =
      members.number("host-address", kPageSizeBytes, kAddressEnd - block.length_bytes);
  PF_TRY(members.finish());
  if (address % block.backing_page_bytes != 0) {
    members.wrong("host-address", fmt::format("is {:#x}, not aligned to its pages of {} bytes",
                                              address, block.backing_page_bytes));
  }
  return address;
}

Result<void> blocks_from_json(const json& list, QemuMemoryMap& map) {
  std::vector<RamBlock> blocks;
  for (std::size_t i = 0; i < list.size(); ++i) {
    JsonMembers members(list[i], kFormat, fmt::format("blocks[{}]", i));
    RamBlock block = read_ram_block(members);
    if (is_direct(map)) {
      PF_ASSIGN(const std::uint64_t address, address_from_json(members, block));
      map.block_addresses.push_back(address);
    }
    PF_TRY(members.finish());
    blocks.push_back(std::move(block));
  }
  auto layout = MemoryLayout::make(std::move(blocks));
  if (!layout) return with_context(std::move(layout).error(), "memory map member blocks");
  map.layout = std::move(*layout);
  return {};
}

Result<void> check_apart(const QemuMemoryMap& map) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;  // begin, end
  for (std::size_t i = 0; i < map.block_addresses.size(); ++i) {
    const std::uint64_t begin = map.block_addresses[i];
    ranges.emplace_back(begin, begin + map.layout.blocks()[i].length_bytes);
  }
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].first >= ranges[i - 1].second) continue;
    return fail(Errc::invalid,
                fmt::format("memory map member blocks: one ends at {:#x}, the next begins at {:#x}",
                            ranges[i - 1].second, ranges[i].first));
  }
  return {};
}

}  // namespace

Result<std::string> encode_memory_map(const QemuMemoryMap& map) {
  PF_CHECK(map.block_addresses.size() == (is_direct(map) ? map.layout.blocks().size() : 0));
  PF_ASSIGN(std::string text, encode_checked_json(to_json(map), kFormat));
  const auto check = decode_memory_map(text);  // what would be refused later is not written at all
  if (!check) return fail(Errc::invalid, check.error().message);
  return text;
}

Result<QemuMemoryMap> decode_memory_map(std::string_view text) {
  PF_ASSIGN(const json object, decode_checked_json(text, kFormat));
  QemuMemoryMap map;
  JsonMembers top(object, kFormat, "");
  const json& process = top.object("process");
  const std::string placement = top.text("placement", 1, kWordBytesMax);
  if (placement != "direct" && placement != "stream")
    top.wrong("placement", "is neither direct nor stream");
  map.placement = placement == "direct" ? PagePlacement::direct : PagePlacement::stream;
  map.qemu_version = static_cast<int>(top.number("qemu-version", 1, kQemuVersionMax));
  map.out_of_band_inode = top.number("out-of-band-inode", 0, is_direct(map) ? 0 : kNumberMax);
  const json& blocks = top.list("blocks", 1, kBlocksMax);
  PF_TRY(top.finish());
  PF_TRY(process_from_json(process, map));
  PF_TRY(blocks_from_json(blocks, map));
  PF_TRY(check_apart(map));
  return map;
}

Result<void> write_memory_map(const std::string& run_directory, const QemuMemoryMap& map) {
  PF_ASSIGN(const std::string text, encode_memory_map(map));
  return write_run_file(run_directory, kMemoryMapFileName, text);
}

Result<QemuMemoryMap> read_memory_map(const std::string& run_directory) {
  PF_ASSIGN(const std::string text,
            read_run_file(run_directory, kMemoryMapFileName, kMemoryMapBytesMax));
  auto map = decode_memory_map(text);
  if (map) return map;
  return with_context(std::move(map).error(),
                      fmt::format("{}/{}", run_directory, kMemoryMapFileName));
}

}  // namespace pageferry
