// QEMU up to 7.2 takes the disk locks when it loads its package, later ones at `cont`: that alone decides whether the claim can wait until
// everything is loaded (docs/ownership-protocol.md, rule 7).
#include "vmstate/qemu_destination_vmm.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmstate/qemu_machine.h"

namespace pageferry {
namespace {

constexpr Seconds kQueryBound{30};
// From here on QEMU takes the disk locks at `cont`, not when it loads its devices.
constexpr int kQemuLocksDisksAtContinue = 100000;

bool is_directory(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

}  // namespace

Result<DestinationCommand> QemuDestinationVmm::make_command() const {
  if (!plan_.incoming_command.empty()) {
    return make_destination_command_from_template(plan_.incoming_command, plan_.run_directory);
  }
  PF_ASSIGN(const std::vector<std::string> argv,
            argv_with_hotplug(manifest_.source.argv, manifest_.machine));
  DestinationPlace place;
  place.host = plan_.host;
  place.run_directory = plan_.run_directory;
  place.machine_type = manifest_.machine_type;
  place.run_id = plan_.run_directory.substr(plan_.run_directory.rfind('/') + 1);
  place.is_directory = is_directory;
  return make_destination_command(argv, place);
}

Result<void> QemuDestinationVmm::start(Deadline deadline) {
  PF_ASSIGN(command_, make_command());
  QemuLaunch launch = launch_as_source(manifest_.source, plan_.run_directory);
  launch.kind = plan_.incoming_command.empty() ? LaunchKind::qemu : LaunchKind::shell;
  launch.executable = plan_.incoming_command.empty() ? manifest_.source.executable : "";
  launch.argv = command_.argv;
  launch.qmp_socket = command_.qmp_socket;
  launch.fifos = command_.fifos;
  auto started = start_qemu(launch, deadline);
  // QEMU has its memory files open: without names they go when it goes, whatever ends it.
  for (const std::string& file : command_.files_made) ::unlink(file.c_str());
  if (!started) return tl::make_unexpected(std::move(started).error());
  vmm_ = std::move(*started);
  process_ = vmm_.identity;
  PF_ASSIGN(machine_, describe_machine(*vmm_.qmp, Deadline::after(clock_, kQueryBound)));
  return {};
}

nlohmann::json QemuDestinationVmm::where() const {
  return {{"pid", vmm_.identity.pid}, {"qmp", command_.qmp_socket}};
}

std::vector<std::string> QemuDestinationVmm::differences() const {
  return compare_machines(manifest_.machine, machine_, manifest_.source.working_directory);
}

bool QemuDestinationVmm::claims_before_load() const {
  return vmm_.qmp->qemu_version() < kQemuLocksDisksAtContinue;
}

Result<void> QemuDestinationVmm::prepare(std::span<const std::byte> prepare_file,
                                         Deadline deadline) {
  PF_ASSIGN(state_, decode_qemu_state(prepare_file));
  RestoreOptions restore;
  restore.order = plan_.order;
  restore.placement = plan_.placement;
  restore.channel_socket_path = plan_.run_directory + "/pages.sock";
  restore.run_directory = plan_.run_directory;
  restore.out_of_band_socket_path = command_.out_of_band_socket;
  PF_ASSIGN(restore_, QemuRestore::create(*vmm_.qmp, restore));
  return restore_->prepare(state_, deadline);
}

Result<void> QemuDestinationVmm::take_state(std::span<const std::byte> state_file) {
  PF_ASSIGN(state_, decode_qemu_state(state_file));
  if (state_.device_sections.empty()) return fail(Errc::corrupt, "no device sections");
  return {};
}

Result<void> QemuDestinationVmm::load(PageSupply& supply, Deadline deadline) {
  return restore_->load_devices(state_, supply, deadline);
}

Result<void> QemuDestinationVmm::resume(std::uint64_t, Deadline deadline) {
  PF_TRY(vmm_.qmp->execute("cont", nlohmann::json::object(), deadline));
  return {};
}

Result<void> QemuDestinationVmm::add_forwards(const std::vector<HostForward>& forwards,
                                              Deadline deadline) {
  // A destination that was moved before has none on its command line: what the source had says it, not that line. A command of the
  // user's own brings its own.
  if (!plan_.incoming_command.empty() || forwards.empty()) return {};
  return add_host_forwards(*vmm_.qmp, forwards, deadline);
}

void QemuDestinationVmm::request_stop() {
  if (restore_) restore_->request_stop();
}

void QemuDestinationVmm::end() {
  restore_.reset();
  if (vmm_.identity.pid == 0) return;
  [[maybe_unused]] const auto ended = end_qemu(vmm_.identity, vmm_.qmp.get(), EndBounds{});
  vmm_ = RunningQemu{};
  process_ = {};
}

}  // namespace pageferry
