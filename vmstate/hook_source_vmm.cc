// The hook says who it is when it is connected to. A guest that is itself being restored may be moved on: HookCapture waits with the
// switch.
#include "vmstate/hook_source_vmm.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <utility>

#include "vmstate/hook_capture.h"
#include "vmstate/hook_machine.h"
#include "vmstate/hook_vmm_end.h"

namespace pageferry {
namespace {

constexpr Seconds kHookConnectBound{5};
constexpr Seconds kRequestBound{30};
constexpr std::string_view kNoUuid = "00000000-0000-0000-0000-000000000000";

// As docs/ownership-protocol.md: a directory on the store.
Result<void> check_vm_name(const std::string& name) {
  constexpr std::size_t kNameBytesMax = 128;
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  const bool good = !name.empty() && name.size() <= kNameBytesMax &&
                    kAllowed.find(name.front()) < kAllowed.find('.') &&
                    name.find_first_not_of(kAllowed) == std::string::npos;
  if (good) return {};
  return fail(
      Errc::invalid,
      fmt::format("the VM's name '{}' cannot be one on the store; give it another with --name",
                  name));
}

}  // namespace

Result<std::unique_ptr<HookSourceVmm>> HookSourceVmm::connect(const std::string& socket,
                                                              const std::string& name, VmmUse use,
                                                              const Clock& clock) {
  const auto role = use == VmmUse::move ? HookClient::Role::mover : HookClient::Role::observer;
  PF_ASSIGN(std::unique_ptr<HookClient> client,
            HookClient::connect(socket, role, Deadline::after(clock, kHookConnectBound)));
  const HookVm& vm = client->vm();
  SourceFacts facts;
  facts.name = name.empty() ? vm.name : name;
  PF_TRY(check_vm_name(facts.name));
  facts.uuid = kNoUuid;
  facts.version = vm.machine;
  facts.run_state = name_of(vm.state);
  facts.tracked_since_attempt = vm.tracked_since_attempt;
  PF_ASSIGN(facts.process, read_vmm_process(vm.pid));
  std::error_code ignored;
  std::string absolute = std::filesystem::absolute(socket, ignored).string();
  return std::unique_ptr<HookSourceVmm>(new HookSourceVmm(
      std::move(facts), std::move(client), ignored ? socket : std::move(absolute), clock));
}

Result<std::vector<Finding>> HookSourceVmm::preflight(DestinationHost) {
  const HookState state = client_->vm().state;
  std::vector<Finding> findings;
  if (state == HookState::restoring) {
    findings.push_back({Severity::note, "run-state",
                        "pages of this guest are still missing: the switch waits for them"});
  } else if (state != HookState::running && state != HookState::moving) {
    findings.push_back(
        {Severity::refusal, "run-state",
         fmt::format("the guest does not run here: the VMM is {}; see recover", name_of(state))});
  }
  const auto& slots = client_->vm().slots;
  const bool anonymous = std::any_of(slots.begin(), slots.end(),
                                     [](const HookSlot& slot) { return !slot.memory.valid(); });
  if (anonymous) {
    findings.push_back({Severity::note, "memory",
                        "some of the memory has no file: it is copied out of the VMM's process"});
  }
  return findings;
}

std::vector<Finding> HookSourceVmm::judge_command() {
  if (!client_->vm().incoming_command.empty()) return {};
  return {{Severity::warning, "command-line",
           "the VMM names no incoming command: give --incoming-command"}};
}

Result<std::unique_ptr<Capture>> HookSourceVmm::make_capture(PageSink& sink,
                                                             CaptureObserver& observer,
                                                             const CaptureOptions& options) {
  PF_ASSIGN(memory_, HookMemory::make(client_->vm()));
  return std::unique_ptr<Capture>(
      new HookCapture(*client_, socket_, *memory_, sink, observer, options));
}

Result<void> HookSourceVmm::describe(VmManifest& manifest) {
  const HookVm& vm = client_->vm();
  HookMachine hook;
  hook.machine = vm.machine;
  hook.socket = socket_;
  hook.incoming_command = vm.incoming_command;
  for (const HookSlot& slot : vm.slots) hook.guest_addresses.push_back(slot.guest_address);
  manifest.hook = std::move(hook);
  return {};
}

Result<std::vector<std::string>> HookSourceVmm::differences(const nlohmann::json& destination) {
  return compare_hook_machines(describe_hook_machine(client_->vm()), destination);
}

Result<void> HookSourceVmm::resume(std::uint64_t epoch) {
  return client_->resume(epoch, Deadline::after(clock_, kRequestBound));
}

Result<void> HookSourceVmm::end() {
  return end_hook_vmm(facts().process.identity, client_.get());
}

}  // namespace pageferry
