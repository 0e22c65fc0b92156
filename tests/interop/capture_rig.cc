#include "interop/capture_rig.h"

#include <fmt/core.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

namespace pageferry::testing_support {
namespace {

constexpr Seconds kQmpBound{60};

}  // namespace

Result<void> CaptureRig::run_to_complete() {
  PF_TRY(capture->start());
  PF_TRY(capture->run_brownout());
  return capture->run_blackout();
}

std::string CaptureRig::difference(const MappedRange& range) {
  const MonotonicClock clock;
  const std::string path = qemu.directory() + "/dump";
  auto dumped = qemu.watch().execute(
      "pmemsave", {{"val", range.guest_address}, {"size", range.bytes}, {"filename", path}},
      Deadline::after(clock, kQmpBound));
  if (!dumped) return dumped.error().message;
  const auto block = sink.layout().find_block(range.block);
  if (!block) return "no RAM block " + range.block;
  const PageIndex first =
      sink.layout().blocks()[*block].first_page + pages_of_bytes(range.block_offset);
  std::ifstream dump(path, std::ios::binary);
  std::vector<char> page(kPageSizeBytes);
  const std::vector<std::byte> zero(kPageSizeBytes);
  std::uint64_t wrong = 0;
  std::string text;
  for (std::uint64_t i = 0; i < pages_of_bytes(range.bytes); ++i) {
    dump.read(page.data(), static_cast<std::streamsize>(page.size()));
    if (!dump.good()) return "the dump ends early";
    const auto stored = sink.pages.find(raw(first + i));
    const auto& bytes =
        stored == sink.pages.end() || stored->second.empty() ? zero : stored->second;
    if (std::memcmp(bytes.data(), page.data(), page.size()) == 0) continue;
    if (wrong++ == 0)
      text = fmt::format("first at offset {:#x} of {}", range.block_offset + bytes_of_pages(i),
                         range.block);
  }
  std::filesystem::remove(path);
  return wrong == 0 ? "" : fmt::format("{} pages differ, {}", wrong, text);
}

std::string migration_settings(QmpClient& qmp) {
  const MonotonicClock clock;
  std::string text;
  for (const char* question : {"query-migrate-capabilities", "query-migrate-parameters"}) {
    auto answer =
        qmp.execute(question, nlohmann::json::object(), Deadline::after(clock, kQmpBound));
    text += answer ? answer->dump() : answer.error().message;
  }
  return text;
}

}  // namespace pageferry::testing_support
