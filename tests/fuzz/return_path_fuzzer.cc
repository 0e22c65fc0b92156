// Fuzzes the return path decoder: any bytes, whole and cut, give the same messages, each inside the layout.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "vmstate/qemu_return_path.h"

namespace {

using namespace pageferry;
using qemu_stream::ReturnPathMessage;

const MemoryLayout& layout() {
  static const MemoryLayout made =
      *MemoryLayout::make({{.name = "pc.ram", .length_bytes = 1000 * kPageSizeBytes},
                           {.name = "r", .length_bytes = 2 * kPageSizeBytes}});
  return made;
}

struct Outcome {
  std::vector<ReturnPathMessage> messages;
  bool failed = false;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

Outcome decode(std::span<const std::byte> bytes, std::size_t piece) {
  Outcome outcome;
  qemu_stream::ReturnPathDecoder decoder(layout());
  while (!bytes.empty() && !outcome.failed) {
    const auto next = bytes.first(std::min(piece, bytes.size()));
    bytes = bytes.subspan(next.size());
    outcome.failed = !decoder.feed(next, outcome.messages).has_value();
  }
  return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data, size)).subspan(1);
  const Outcome whole = decode(bytes, bytes.size() + 1);
  if (!(whole == decode(bytes, data[0] + std::size_t{1}))) std::abort();
  for (const ReturnPathMessage& message : whole.messages) {
    const auto* request = std::get_if<qemu_stream::PageRequest>(&message);
    if (request == nullptr) continue;
    const RamBlock& block = layout().blocks().at(request->block);
    if (request->run.pages == 0 || request->run.first < block.first_page ||
        request->run.first - block.first_page + request->run.pages > block.pages()) {
      std::abort();
    }
  }
  return 0;
}
