// Fuzzes the stream parser: any bytes, in one piece and cut where the first byte says, never crash it, and the cut changes nothing.
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "pager/page_sink.h"
#include "vmstate/qemu_stream_parser.h"

namespace {

using namespace pageferry;

class CountingSink final : public PageSink {
 public:
  Result<void> begin(const MemoryLayout&) override { return {}; }
  void begin_pass(std::uint32_t) override {}
  Result<void> begin_blackout() override { return {}; }
  Result<void> put_page(PageIndex page, PageBytes bytes) override {
    sum = sum * 31 + raw(page) + std::to_integer<unsigned>(bytes[kPageSizeBytes - 1]);
    return {};
  }
  Result<void> put_zero(PageIndex page) override {
    sum = sum * 31 + raw(page);
    return {};
  }
  std::uint64_t sum = 0;
};

class NoEvents final : public qemu_stream::StreamEvents {
 public:
  Result<void> on_ping(std::uint32_t) override { return {}; }
  Result<void> on_setup_complete(const QemuState&) override { return {}; }
  void on_ram_end() override {}
};

struct Outcome {
  std::uint64_t sum = 0;
  bool complete = false;
  bool failed = false;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

Outcome parse(std::span<const std::byte> bytes, std::size_t piece) {
  CountingSink sink;
  NoEvents events;
  qemu_stream::StreamParser parser(events, sink);
  std::vector<std::byte> window;
  while (!bytes.empty()) {
    const auto next = bytes.first(std::min(piece, bytes.size()));
    bytes = bytes.subspan(next.size());
    window.insert(window.end(), next.begin(), next.end());
    const auto used = parser.parse(window);
    if (!used) return {.sum = sink.sum, .complete = false, .failed = true};
    if (*used > window.size()) std::abort();
    window.erase(window.begin(), window.begin() + static_cast<std::ptrdiff_t>(*used));
    if (window.size() >= qemu_stream::kParserWindowBytes) std::abort();
  }
  return {.sum = sink.sum, .complete = parser.complete(), .failed = false};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data, size)).subspan(1);
  const Outcome whole = parse(bytes, bytes.size() + 1);
  const Outcome cut = parse(bytes, data[0] + std::size_t{1});
  // Where a description ends is judged at the end of each piece, so bytes behind it may be seen in one and not in the other.
  if (!(whole == cut) && !(whole.failed != cut.failed && whole.sum == cut.sum)) std::abort();
  return 0;
}
