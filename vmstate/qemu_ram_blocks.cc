// A line is read from its right end, since only the name may hold blanks:
//
//   Block Name    PSize              Offset               Used              Total  HVA  RO
//       pc.ram    4 KiB  0x0000000000000000 0x0000000080000000 0x0000000080000000  0x7f..  rw
//
// HVA and RO came with 8.2; whatever follows is ignored.
#include "vmstate/qemu_ram_blocks.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>

namespace pageferry {
namespace {

std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> words;
  while (!line.empty()) {
    const std::size_t begin = line.find_first_not_of(" \t\r");
    if (begin == std::string_view::npos) break;
    line.remove_prefix(begin);
    const std::size_t end = std::min(line.find_first_of(" \t\r"), line.size());
    words.push_back(line.substr(0, end));
    line.remove_prefix(end);
  }
  return words;
}

std::optional<std::uint64_t> number(std::string_view text, int base) {
  if (base == 16) {
    if (!text.starts_with("0x")) return std::nullopt;
    text.remove_prefix(2);
  }
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<std::uint64_t> size_of(std::string_view count, std::string_view unit) {
  unsigned shift = 0;
  if (unit == "KiB") {
    shift = 10;
  } else if (unit == "MiB") {
    shift = 20;
  } else if (unit == "GiB") {
    shift = 30;
  } else {
    return std::nullopt;
  }
  const auto value = number(count, 10);
  if (!value || *value == 0 || *value > 1024) return std::nullopt;
  return *value << shift;
}

std::optional<QemuRamBlock> parse_line(std::string_view line) {
  const std::vector<std::string_view> words = words_of(line);
  // The first hexadecimal word that follows "<count> <unit>" is the offset.
  for (std::size_t i = 2; i + 2 < words.size(); ++i) {
    const auto page_bytes = size_of(words[i - 2], words[i - 1]);
    if (!page_bytes || !number(words[i], 16)) continue;
    const auto used = number(words[i + 1], 16);
    const auto total = number(words[i + 2], 16);
    if (!used || !total) return std::nullopt;
    QemuRamBlock block{
        .name = {}, .page_bytes = *page_bytes, .used_bytes = *used, .total_bytes = *total};
    if (i + 3 < words.size()) block.host_address = number(words[i + 3], 16);
    if (i > 2) {
      const char* begin = words[0].data();
      const char* end = words[i - 3].data() + words[i - 3].size();
      block.name.assign(begin, end);
    }
    return block;
  }
  return std::nullopt;
}

}  // namespace

Result<std::vector<QemuRamBlock>> parse_ram_blocks(std::string_view text) {
  std::vector<QemuRamBlock> blocks;
  bool heading = true;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (words_of(line).empty()) continue;
    if (heading) {
      heading = false;
      if (line.find("Block Name") != std::string_view::npos) continue;
    }
    auto block = parse_line(line);
    if (!block || blocks.size() >= 4 * kBlocksMax) {
      return fail(Errc::vmm,
                  fmt::format("info ramblock: line not understood: '{}'", line.substr(0, 120)));
    }
    blocks.push_back(*std::move(block));
  }
  return blocks;
}

Result<std::vector<QemuRamBlock>> query_ram_blocks(QmpClient& qmp, Deadline deadline) {
  PF_ASSIGN(const nlohmann::json reply,
            qmp.execute("human-monitor-command", {{"command-line", "info ramblock"}}, deadline));
  if (!reply.is_string()) return fail(Errc::vmm, "info ramblock: the answer is no text");
  return parse_ram_blocks(reply.get<std::string>());
}

const QemuRamBlock* find_ram_block(const std::vector<QemuRamBlock>& blocks, std::string_view name) {
  const auto found = std::find_if(blocks.begin(), blocks.end(),
                                  [name](const QemuRamBlock& one) { return one.name == name; });
  return found == blocks.end() ? nullptr : &*found;
}

Result<MemoryLayout> layout_at_destination(const MemoryLayout& captured,
                                           const std::vector<QemuRamBlock>& destination) {
  std::vector<RamBlock> blocks = captured.blocks();
  for (RamBlock& block : blocks) {
    const QemuRamBlock* const there = find_ram_block(destination, block.name);
    if (there == nullptr) {
      return fail(Errc::invalid,
                  fmt::format("the destination QEMU has no RAM block '{}'", block.name));
    }
    if (block.length_bytes > there->total_bytes) {
      return fail(Errc::invalid,
                  fmt::format("RAM block '{}' has {} bytes, at the destination only {}", block.name,
                              block.length_bytes, there->total_bytes));
    }
    block.backing_page_bytes = there->page_bytes;
  }
  return MemoryLayout::make(std::move(blocks));
}

}  // namespace pageferry
