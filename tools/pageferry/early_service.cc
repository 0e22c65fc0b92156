// The map is looked for by the process that the records name, not by a path in them: records know no paths of a host.
#include "tools/pageferry/early_service.h"

#include <fmt/format.h>

#include <filesystem>
#include <utility>

#include "tools/pageferry/attempt_files.h"

namespace pageferry {

Result<std::optional<KeptMemoryMap>> find_memory_map(const std::string& run_dir,
                                                     const std::string& vm_name,
                                                     const ProcessIdentity& process) {
  std::optional<Error> unbelievable;
  std::error_code ignored;
  for (const auto& entry :
       std::filesystem::directory_iterator(fmt::format("{}/{}", run_dir, vm_name), ignored)) {
    if (!entry.is_directory(ignored)) continue;
    auto map = read_memory_map(entry.path().string());
    if (map && map->process == process)
      return std::optional<KeptMemoryMap>({entry.path().string(), std::move(*map)});
    if (!map && map.error().code != Errc::not_found) unbelievable = std::move(map).error();
  }
  if (unbelievable) return tl::make_unexpected(std::move(*unbelievable));
  return std::optional<KeptMemoryMap>();
}

Result<std::optional<MissingPages>> find_missing_pages(const RecoverCommand& command,
                                                       const HandOff& hand_off,
                                                       const OwnershipSnapshot& snapshot) {
  constexpr std::optional<MissingPages> kNone;
  if (snapshot.empty() || !snapshot.top().ran()) return kNone;
  if (snapshot.top().resident || snapshot.top().is_closed()) return kNone;
  const auto process = vmm_of_highest(snapshot, hand_off.host());
  if (!process) return kNone;
  PF_ASSIGN(auto kept, find_memory_map(command.common.run_dir, command.destination.name, *process));
  if (!kept) return kNone;
  GuestState state = image_for(snapshot, snapshot.highest());
  if (!state.image) return kNone;
  return std::optional<MissingPages>({std::move(*kept), std::move(state)});
}

Result<std::unique_ptr<EarlyService>> EarlyService::start(const RecoverCommand& command,
                                                          HandOff& hand_off,
                                                          const MissingPages& missing,
                                                          const Clock& clock) {
  PF_CHECK(missing.state.image.has_value());
  PF_ASSIGN(Attempt attempt, hand_off.directory().open_attempt(missing.state.image->attempt));
  PF_ASSIGN(auto reader, open_attempt_pages(attempt, command.common.store_faults, clock, {}));
  PF_TRY(check_commit(*reader, missing.state.image->commit));
  std::unique_ptr<EarlyService> early(new EarlyService(std::move(attempt), std::move(reader)));
  PF_ASSIGN(early->service_, QemuFaultService::start(missing.kept.map, *early->reader_));
  return early;
}

}  // namespace pageferry
