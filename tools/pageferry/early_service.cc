// The map is looked for by the process that the records name, not by a path in them: records know no paths of a host.
#include "tools/pageferry/early_service.h"

#include <fmt/format.h>

#include <filesystem>
#include <utility>

#include "tools/pageferry/attempt_files.h"

namespace pageferry {

Result<std::optional<QemuMemoryMap>> find_memory_map(const std::string& run_dir,
                                                     const std::string& vm_name,
                                                     const ProcessIdentity& process) {
  std::optional<Error> unbelievable;
  std::error_code ignored;
  for (const auto& entry :
       std::filesystem::directory_iterator(fmt::format("{}/{}", run_dir, vm_name), ignored)) {
    if (!entry.is_directory(ignored)) continue;
    auto map = read_memory_map(entry.path().string());
    if (map && map->process == process) return std::optional<QemuMemoryMap>(std::move(*map));
    if (!map && map.error().code != Errc::not_found) unbelievable = std::move(map).error();
  }
  if (unbelievable) return tl::make_unexpected(std::move(*unbelievable));
  return std::optional<QemuMemoryMap>();
}

Result<std::unique_ptr<EarlyService>> EarlyService::start(const RecoverCommand& command,
                                                          HandOff& hand_off,
                                                          const OwnershipSnapshot& snapshot,
                                                          const Clock& clock) {
  if (snapshot.empty() || !snapshot.top().ran()) return nullptr;
  if (snapshot.top().resident || snapshot.top().is_closed()) return nullptr;
  const auto process = vmm_of_highest(snapshot, hand_off.host());
  if (!process) return nullptr;
  PF_ASSIGN(const auto map,
            find_memory_map(command.common.run_dir, command.destination.name, *process));
  if (!map) return nullptr;
  const GuestState state = image_for(snapshot, snapshot.highest());
  if (!state.image) return nullptr;
  PF_ASSIGN(Attempt attempt, hand_off.directory().open_attempt(state.image->attempt));
  PF_ASSIGN(auto reader, open_attempt_pages(attempt, command.common.store_faults, clock, {}));
  PF_TRY(check_commit(*reader, state.image->commit));
  std::unique_ptr<EarlyService> early(new EarlyService(std::move(attempt), std::move(reader)));
  PF_ASSIGN(early->service_, QemuFaultService::start(*map, *early->reader_));
  return early;
}

}  // namespace pageferry
