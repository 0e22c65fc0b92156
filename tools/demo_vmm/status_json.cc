// Names are spelled as the pageferry program spells its own: lower case, units at the end.
#include "tools/demo_vmm/status_json.h"

#include <fmt/core.h>

#include <array>

namespace pageferry::demo {
namespace {

const char* name_of(BadKind kind) {
  static constexpr std::array kNames{"none",        "content",   "stale", "not-zero", "entry",
                                     "version-sum", "registers", "block", "disk",     "answer"};
  const auto index = static_cast<std::size_t>(kind);
  return index < kNames.size() ? kNames.at(index) : "unknown";  // guest memory may hold anything
}

const char* name_of(RunState state) {
  if (state == RunState::failed) return "failed";
  return state == RunState::running ? "running" : "paused";
}

}  // namespace

nlohmann::json status_json(const VmStatus& status, const std::string& hook_state,
                           double dirty_mib_s) {
  const Report& report = status.report;
  nlohmann::json json{{"type", "status"},
                      {"state", name_of(status.run_state)},
                      {"filled", report.filled != 0},
                      {"heartbeats", report.heartbeats},
                      {"written-pages", report.pages_written},
                      {"verified-pages", report.pages_verified},
                      {"dirty-mib-s", dirty_mib_s},
                      {"given-back-bytes", status.given_back_bytes},
                      {"written-blocks", report.blocks_written},
                      {"verified-blocks", report.blocks_verified},
                      {"checks", report.checks},
                      {"bad-pages", report.bad}};
  if (!hook_state.empty()) json["hook-state"] = hook_state;
  if (status.first_word_after > Nanoseconds(0)) {
    json["first-word-after-us"] =
        std::chrono::duration_cast<std::chrono::microseconds>(status.first_word_after).count();
  }
  if (!status.failure.empty()) json["error-desc"] = status.failure;
  if (report.bad != 0) {
    json["first-bad-kind"] = name_of(report.first_bad_kind);
    json["first-bad-address"] = fmt::format("{:#x}", report.first_bad_address);
  }
  return json;
}

}  // namespace pageferry::demo
