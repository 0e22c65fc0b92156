// Replies of a hook, which a pager trusts no more than a file. The first byte says what was asked; slots are collected from the rest until it
// is used up, and what check_slots takes is apart and aligned.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "vmstate/hook_protocol.h"

namespace {

using namespace pageferry::hook_protocol;

void require(bool holds) {
  if (!holds) std::abort();
}

void check_layout(const std::vector<SlotReply>& slots) {
  const auto layout = check_slots(slots);
  if (!layout) return;
  require(layout->blocks().size() == slots.size());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    require(slots[i].host_address % slots[i].backing_page_bytes == 0);
    require(slots[i].guest_address + slots[i].size_bytes >= slots[i].guest_address);
    for (std::size_t j = 0; j < i; ++j) {
      require(slots[i].guest_address + slots[i].size_bytes <= slots[j].guest_address ||
              slots[j].guest_address + slots[j].size_bytes <= slots[i].guest_address);
      require(slots[i].host_address + slots[i].size_bytes <= slots[j].host_address ||
              slots[j].host_address + slots[j].size_bytes <= slots[i].host_address);
    }
  }
}

void decode_slots(std::span<const std::byte> bytes) {
  std::vector<SlotReply> slots;
  while (!bytes.empty()) {
    const std::size_t length = std::min(bytes.size() - 1, std::to_integer<std::size_t>(bytes[0]));
    if (auto slot = decode_slot(bytes.subspan(1, length))) slots.push_back(*slot);
    bytes = bytes.subspan(1 + length);
  }
  check_layout(slots);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data + 1, size - 1));
  switch (data[0] % 7) {
    case 0:
      if (const auto hello = decode_hello(bytes)) require(hello->slots <= pageferry::kBlocksMax);
      break;
    case 1:
      static_cast<void>(decode_guest_facts(bytes));
      break;
    case 2:
      decode_slots(bytes);
      break;
    case 3:
      if (const auto words = decode_command(bytes)) require(words->size() <= kCommandWordsMax);
      break;
    case 4:
      if (const auto length = decode_state_bytes(bytes)) require(*length <= kStateBytesMax);
      break;
    case 5:
      static_cast<void>(decode_collect(bytes));
      break;
    default:
      static_cast<void>(decode_reply({.type = Type::pause, .serial = 1}, bytes));
      break;
  }
  return 0;
}
