// Each socket is asked once; two paths may lead to one VMM.
#include "tools/pageferry/hook_look.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "tools/pageferry/attempt_files.h"
#include "vmstate/hook_destination_vmm.h"
#include "vmstate/manifest.h"

namespace pageferry {
namespace {

constexpr Seconds kLookBound{3};

void add_from_run_directories(const std::string& run_dir, const std::string& vm_name,
                              std::vector<std::string>& sockets) {
  std::error_code ignored;
  for (const auto& entry :
       std::filesystem::directory_iterator(fmt::format("{}/{}", run_dir, vm_name), ignored)) {
    const auto socket = entry.path() / kHookSocketName;
    if (std::filesystem::exists(socket, ignored)) sockets.push_back(socket.string());
  }
}

// An attempt whose manifest is not there, or cannot be believed, names nothing.
void add_from_manifests(const HandOff& hand_off, std::vector<std::string>& sockets) {
  const auto attempts = hand_off.directory().list_attempts();
  if (!attempts) return;
  for (const std::string& name : *attempts) {
    const auto attempt = hand_off.directory().open_attempt(name);
    if (!attempt) continue;
    const auto text = read_attempt_text(*attempt, std::string(kManifestFileName));
    if (!text) continue;
    const auto manifest = decode_manifest(*text);
    if (!manifest || !manifest->hook) continue;
    if (manifest->source_boot_id == hand_off.host().boot_id) {
      sockets.push_back(manifest->hook->socket);
    }
  }
}

}  // namespace

VmmState vmm_state_of(const HookLook& look) {
  switch (look.state) {
    case HookState::running:
    case HookState::moving:
    case HookState::restoring:
      return VmmState::running;
    case HookState::paused:
      return VmmState::finishing;
    case HookState::committed:
    case HookState::moved_away:
      return VmmState::post_migrate;
    case HookState::incoming:
      return look.attempt_id.empty() ? VmmState::incoming : VmmState::paused;
  }
  return VmmState::running;
}

std::optional<ImageRef> loaded_image(const HookLook& look, const OwnershipSnapshot& snapshot) {
  if (snapshot.empty() || look.attempt_id.empty()) return std::nullopt;
  for (const Epoch epoch : {snapshot.highest(), next(snapshot.highest())}) {
    const auto image = image_for(snapshot, epoch).image;
    if (image && image->attempt.ends_with("." + look.attempt_id)) return image;
  }
  return std::nullopt;
}

std::vector<HookLook> find_hook_vmms(const std::string& run_dir, const std::string& vm_name,
                                     const std::optional<VmAddress>& named_by_user,
                                     const HandOff& hand_off, const Clock& clock) {
  std::vector<std::string> sockets;
  if (named_by_user && named_by_user->kind == VmmKind::hook) {
    sockets.push_back(named_by_user->socket);
  }
  add_from_run_directories(run_dir, vm_name, sockets);
  add_from_manifests(hand_off, sockets);
  std::vector<HookLook> looks;
  for (const std::string& socket : sockets) {
    const auto client =
        HookClient::connect(socket, HookClient::Role::observer, Deadline::after(clock, kLookBound));
    if (!client) continue;
    const HookVm& vm = (*client)->vm();
    const auto process = identify_process(vm.pid);
    const bool known = std::any_of(looks.begin(), looks.end(), [&](const HookLook& look) {
      return process && look.process == *process;
    });
    if (!process || known) continue;
    looks.push_back({socket, *process, vm.state, vm.attempt_id});
  }
  return looks;
}

}  // namespace pageferry
