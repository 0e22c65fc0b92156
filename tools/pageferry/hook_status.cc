// Figures of a pager that is gone are still there, and told apart by its pid and by when they were written.
#include "tools/pageferry/hook_status.h"

#include <array>

#include "tools/pageferry/hook_look.h"
#include "vmstate/hook_machine.h"

namespace pageferry {
namespace {

constexpr Seconds kStatusBound{3};
constexpr std::uint64_t kNsPerMs = 1'000'000;

constexpr const char* phase_name(HookPhase phase) {
  switch (phase) {
    case HookPhase::idle:
      return "idle";
    case HookPhase::brownout:
      return "brownout";
    case HookPhase::blackout:
      return "blackout";
    case HookPhase::released:
      return "released";
    case HookPhase::loading:
      return "loading";
    case HookPhase::restoring:
      return "restoring";
    case HookPhase::resident:
      return "resident";
  }
  return "unknown";
}

nlohmann::json progress_at(const std::string& socket, const Clock& clock) {
  const Deadline deadline = Deadline::after(clock, kStatusBound);
  const auto client = HookClient::connect(socket, HookClient::Role::observer, deadline);
  if (!client) return nullptr;
  const auto page = (*client)->progress(deadline);
  if (!page) return nullptr;
  const auto progress = page->read();
  return progress ? progress_to_json(*progress) : nlohmann::json(nullptr);
}

}  // namespace

nlohmann::json progress_to_json(const HookProgress& progress) {
  const bool restores = progress.phase >= HookPhase::loading;
  nlohmann::json json = {{"phase", phase_name(progress.phase)},
                         {"pager-pid", progress.pager_pid},
                         {"total-time", (progress.updated_ns - progress.started_ns) / kNsPerMs},
                         {"speed", progress.bytes_per_s}};
  json["ram"] = {{"total", bytes_of_pages(progress.pages_total)},
                 {"transferred", progress.bytes_moved},
                 {"remaining", bytes_of_pages(progress.pages_left)},
                 {"dirty-pages-rate", progress.dirty_pages_per_s},
                 {"dirty-sync-count", progress.pass},
                 {"page-size", kPageSizeBytes}};
  if (!restores) return json;
  json["faults"] = {{"count", progress.faults},
                    {"p50-us", progress.fault_p50_us},
                    {"p99-us", progress.fault_p99_us},
                    {"max-us", progress.fault_max_us}};
  json["prefetch"] = {{"pages", progress.prefetched_pages}};
  return json;
}

nlohmann::json status_of_hooks(const std::string& run_dir, const std::string& vm_name,
                               const HandOff& hand_off, const Clock& clock) {
  nlohmann::json list = nlohmann::json::array();
  for (const HookLook& look : find_hook_vmms(run_dir, vm_name, std::nullopt, hand_off, clock)) {
    nlohmann::json entry = {
        {"pid", look.process.pid}, {"hook", look.socket}, {"state", name_of(look.state)}};
    nlohmann::json progress = progress_at(look.socket, clock);
    if (!progress.is_null()) entry["progress"] = std::move(progress);
    list.push_back(std::move(entry));
  }
  return list;
}

}  // namespace pageferry
