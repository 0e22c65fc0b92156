// What must hold of texts, commands and memory slots, for the hook (which gets them from the VMM) and for the pager (which gets them from
// the hook) alike. One predicate for both sides: what one lets pass, the other takes.
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "vmstate/hook_protocol.h"

namespace pageferry::hook_protocol {
namespace {

struct Range {
  std::uint64_t begin = 0;
  std::uint64_t bytes = 0;
  std::size_t slot = 0;
};

// No two have a byte in common. Precondition: none wraps around.
Result<void> check_apart(std::string_view what, std::vector<Range> ranges,
                         std::span<const SlotReply> slots) {
  std::ranges::sort(ranges, {}, &Range::begin);
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].begin - ranges[i - 1].begin >= ranges[i - 1].bytes) continue;
    return fail(Errc::invalid, fmt::format("slots '{}' and '{}' overlap at {} {:#x}",
                                           slots[ranges[i - 1].slot].name,
                                           slots[ranges[i].slot].name, what, ranges[i].begin));
  }
  return {};
}

Result<void> check_address(const SlotReply& slot, std::string_view what, std::uint64_t address,
                           std::uint64_t alignment) {
  const bool fits = address <= std::numeric_limits<std::uint64_t>::max() - slot.size_bytes;
  if (address % alignment == 0 && fits) return {};
  return fail(Errc::invalid,
              fmt::format("slot '{}': {} {:#x} with {} bytes is {}", slot.name, what, address,
                          slot.size_bytes,
                          fits ? fmt::format("no multiple of {}", alignment) : "out of range"));
}

}  // namespace

Result<MemoryLayout> check_slots(std::span<const SlotReply> slots) {
  std::vector<RamBlock> blocks;
  std::vector<Range> guest;
  std::vector<Range> host;
  for (const SlotReply& slot : slots) {
    PF_TRY(check_text("name of a memory slot", slot.name, 1, kBlockNameBytesMax));
    blocks.push_back({.name = slot.name,
                      .length_bytes = slot.size_bytes,
                      .backing_page_bytes = slot.backing_page_bytes,
                      .first_page = {}});
  }
  PF_ASSIGN(MemoryLayout layout, MemoryLayout::make(std::move(blocks)));
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const SlotReply& slot = slots[i];
    PF_TRY(check_address(slot, "guest address", slot.guest_address, kPageSizeBytes));
    PF_TRY(check_address(slot, "host address", slot.host_address, slot.backing_page_bytes));
    PF_TRY(check_address(slot, "memory offset", slot.memory_offset_bytes, slot.backing_page_bytes));
    if (slot.host_address == 0 || (!slot.has_memory && slot.memory_offset_bytes != 0)) {
      return fail(Errc::invalid, fmt::format("slot '{}': host address {:#x}, offset {:#x} of {}",
                                             slot.name, slot.host_address, slot.memory_offset_bytes,
                                             slot.has_memory ? "its memory" : "no memory"));
    }
    guest.push_back({.begin = slot.guest_address, .bytes = slot.size_bytes, .slot = i});
    host.push_back({.begin = slot.host_address, .bytes = slot.size_bytes, .slot = i});
  }
  PF_TRY(check_apart("guest address", std::move(guest), slots));
  PF_TRY(check_apart("host address", std::move(host), slots));
  return layout;
}

Result<void> check_text(std::string_view what, std::string_view text, std::size_t bytes_min,
                        std::size_t bytes_max) {
  if (text.size() < bytes_min || text.size() > bytes_max) {
    return fail(Errc::invalid, fmt::format("{} has {} bytes, limit {}..{}", what, text.size(),
                                           bytes_min, bytes_max));
  }
  const auto control = std::ranges::find_if(
      text, [](char each) { return static_cast<unsigned char>(each) < ' ' || each == '\x7f'; });
  if (control == text.end()) return {};
  return fail(Errc::invalid,
              fmt::format("{} has the control character {:#04x} at {}", what,
                          static_cast<unsigned char>(*control), control - text.begin()));
}

Result<void> check_command(std::string_view what, std::span<const std::string> words) {
  if (words.size() > kCommandWordsMax) {
    return fail(Errc::invalid,
                fmt::format("{} has {} words, limit {}", what, words.size(), kCommandWordsMax));
  }
  std::size_t bytes = 0;
  for (const std::string& word : words) {
    bytes += word.size();
    if (word.find('\0') != std::string::npos) {
      return fail(Errc::invalid, fmt::format("{} has a word with a zero byte", what));
    }
  }
  if (!words.empty() && words.front().empty()) {
    return fail(Errc::invalid, fmt::format("{} begins with an empty word", what));
  }
  if (bytes <= kCommandBytesMax) return {};
  return fail(Errc::invalid,
              fmt::format("{} has {} bytes, limit {}", what, bytes, kCommandBytesMax));
}

}  // namespace pageferry::hook_protocol
