// The VMM that listens on our socket must be one that waits for a guest: anything else there is refused before it is told anything.
#include "vmstate/hook_destination_vmm.h"

#include <fmt/format.h>

#include <utility>

#include "vmstate/hook_machine.h"
#include "vmstate/hook_vmm_end.h"

namespace pageferry {
namespace {

constexpr std::string_view kPlaceholder = "{socket}";

std::size_t replace_all(std::string& text, const std::string& socket) {
  std::size_t replaced = 0;
  for (auto at = text.find(kPlaceholder); at != std::string::npos;
       at = text.find(kPlaceholder, at)) {
    text.replace(at, kPlaceholder.size(), socket);
    at += socket.size();
    ++replaced;
  }
  return replaced;
}

}  // namespace

Result<HookCommand> make_hook_command(const std::vector<std::string>& manifest_command,
                                      const std::string& user_command, const std::string& socket) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-";
  if (socket.find_first_not_of(kPlain) != std::string::npos) {
    return fail(
        Errc::invalid,
        fmt::format("socket path \"{}\" has characters that a shell would take apart", socket));
  }
  HookCommand command;
  std::size_t replaced = 0;
  if (!user_command.empty()) {
    std::string line = user_command;
    replaced = replace_all(line, socket);
    command.kind = LaunchKind::shell;
    command.argv = {"/bin/sh", "-c", std::move(line)};
  } else {
    command.argv = manifest_command;
    for (std::string& word : command.argv) replaced += replace_all(word, socket);
  }
  if (command.argv.empty()) {
    return fail(Errc::invalid,
                "the VMM named no command that starts a destination; give --incoming-command");
  }
  if (replaced == 0) {
    return fail(Errc::invalid,
                "the incoming command has no {socket}: the destination could not be reached");
  }
  return command;
}

Result<void> HookDestinationVmm::start(Deadline deadline) {
  socket_ = fmt::format("{}/{}", plan_.run_directory, kHookSocketName);
  PF_ASSIGN(HookCommand command,
            make_hook_command(manifest_.hook->incoming_command, plan_.incoming_command, socket_));
  QemuLaunch launch = launch_as_source(manifest_.source, plan_.run_directory);
  launch.kind = command.kind;
  launch.argv = std::move(command.argv);
  launch.qmp_socket = socket_;
  std::unique_ptr<HookClient> client;
  PF_TRY(start_vmm(
      launch, "the destination's VMM",
      [&]() -> Result<void> {
        PF_ASSIGN(client, HookClient::connect(socket_, HookClient::Role::restorer, deadline));
        if (client->vm().state == HookState::incoming && client->vm().attempt_id.empty()) return {};
        return fail(Errc::invalid, fmt::format("the VMM at {} is {}: it must wait for a guest",
                                               socket_, name_of(client->vm().state)));
      },
      deadline));
  PF_ASSIGN(process_, identify_process(client->vm().pid));
  machine_ = describe_hook_machine(client->vm());
  restore_ = std::make_unique<HookRestore>(std::move(client), plan_.order, clock_);
  return {};
}

nlohmann::json HookDestinationVmm::where() const {
  return {{"pid", process_.pid}, {"hook", socket_}};
}

std::vector<std::string> HookDestinationVmm::differences() const {
  return compare_hook_machines(describe_hook_machine(manifest_), machine_);
}

Result<void> HookDestinationVmm::take_state(std::span<const std::byte> state_file) {
  PF_ASSIGN(state_, decode_hook_state(state_file));
  return {};
}

Result<void> HookDestinationVmm::load(PageSupply& supply, Deadline deadline) {
  PF_TRY(restore_->serve(supply, deadline));
  return restore_->load_state(state_, manifest_.attempt_id, deadline);
}

Result<void> HookDestinationVmm::resume(std::uint64_t epoch, Deadline deadline) {
  return restore_->resume(epoch, deadline);
}

void HookDestinationVmm::request_stop() {
  if (restore_) restore_->request_stop();
}

void HookDestinationVmm::end() {
  restore_.reset();
  if (process_.pid == 0) return;
  [[maybe_unused]] const auto ended = end_hook_vmm(process_, nullptr);
  process_ = {};
}

}  // namespace pageferry
