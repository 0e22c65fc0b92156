// migrate, send, receive, recover, status, abort. inspect and check have files of their own.
#include "tools/pageferry/commands.h"

#include <fmt/format.h>
#include <poll.h>

#include "tools/pageferry/control_server.h"
#include "tools/pageferry/hand_off.h"
#include "tools/pageferry/hook_status.h"
#include "tools/pageferry/recovery.h"
#include "tools/pageferry/reporter.h"
#include "tools/pageferry/serving_lock.h"
#include "tools/pageferry/source_migration.h"
#include "tools/pageferry/stop_on_signals.h"
#include "transport/vm_lock.h"

namespace pageferry {
namespace {

constexpr Milliseconds kHolderPatience{3000};

Reporter reporter_for(const CommonOptions& common, const Clock& clock) {
  return Reporter(common.style, common.verbosity, clock);
}

std::string socket_path(const CommonOptions& common, const std::string& name, const char* role) {
  return common.run_dir + "/" + name + "." + role + ".sock";
}

struct RecoveryLocks {
  std::vector<VmLock> of_vm;     // <name>.destination, and for recover <name>.source
  std::vector<VmLock> of_ended;  // serving locks of those that recover has ended
};

// receive and recover differ in how they take the locks and in what they may do to another tool. Once all that is left is to bring pages,
// the VM's locks and <name>.destination.sock are let go of: they are for the tool that moves the guest on.
ExitCode run_recovery(const RecoverCommand& command, RecoveryLocks locks, Reporter& reporter,
                      const Clock& clock) {
  const std::string& run_dir = command.common.run_dir;
  const std::string& name = command.destination.name;
  Recovery recovery(command, reporter, clock);
  const auto listen_at = [&recovery](std::string path) {
    return ControlServer::start(std::move(path), [&recovery] {
      recovery.request_stop();
      return Result<std::string>("stopping; the records say who may go on");
    });
  };
  auto control = listen_at(socket_path(command.common, name, "destination"));
  if (!control) {
    reporter.error(control.error());
    return ExitCode::refused;
  }
  std::optional<ServingLock> serving;
  recovery.when_serving([&](Epoch epoch) {
    // Whoever lost its server looked for these locks when it saw the end, and not again.
    locks.of_ended.clear();
    auto taken = ServingLock::acquire(run_dir, name, epoch);
    if (!taken) return reporter.warning(taken.error().message);
    serving.emplace(std::move(*taken));
    control->reset();
    control = listen_at(serving_socket_path(run_dir, name, epoch));
    if (!control) reporter.warning(control.error().message);
    locks.of_vm.clear();
  });
  const ExitCode code = recovery.run_to_the_end();
  reporter.finish(recovery.result(), code);
  return code;
}

std::string describe_epoch(const OwnershipSnapshot& snapshot, Epoch epoch) {
  const EpochRecords& records = snapshot.at(epoch);
  std::string what;
  if (records.ended)
    what = "ended";
  else if (records.released)
    what = records.released_state() ? "released" : "released, without an image";
  else if (records.fenced)
    what = "fenced";
  else if (records.is_void())
    what = "given up";
  else if (records.ran())
    what = records.resident || !image_for(snapshot, epoch).image
               ? "runs"
               : "runs, its image is still needed";
  else
    what = "claimed, not running yet";
  return what;
}

nlohmann::json status_of_records(const OwnershipSnapshot& snapshot) {
  nlohmann::json epochs = nlohmann::json::array();
  for (std::uint32_t n = raw(snapshot.first); !snapshot.empty() && n <= raw(snapshot.highest());
       ++n) {
    const EpochRecords& records = snapshot.at(Epoch{n});
    nlohmann::json entry = {{"epoch", n}, {"state", describe_epoch(snapshot, Epoch{n})}};
    if (records.owner) {
      const RecordWriter& owner = records.owner_writer();
      entry["owner"] = owner.host.name;
      entry["boot-id"] = owner.host.boot_id;
      if (owner.vmm) entry["vmm-pid"] = owner.vmm->pid;
    }
    if (const GuestState* state = records.released_state(); state != nullptr && state->image) {
      entry["image"] = state->image->attempt;
    }
    epochs.push_back(std::move(entry));
  }
  return epochs;
}

}  // namespace

ExitCode run_migrate(const MigrateCommand& command, const Clock& clock) {
  if (command.mode == MigrateCommand::Mode::dry_run) {
    return run_check(CheckCommand{command.common, command.source}, clock);
  }
  Reporter reporter = reporter_for(command.common, clock);
  SourceMigration migration(command.source, command.common, &command.destination, reporter, clock);
  return migration.run();
}

ExitCode run_send(const SendCommand& command, const Clock& clock) {
  Reporter reporter = reporter_for(command.common, clock);
  SourceMigration migration(command.source, command.common, nullptr, reporter, clock);
  return migration.run();
}

ExitCode run_receive(const ReceiveCommand& command, const Clock& clock) {
  Reporter reporter = reporter_for(command.common, clock);
  auto lock = VmLock::acquire(command.common.run_dir, command.destination.name + ".destination");
  if (!lock) {
    reporter.error(lock.error());
    return ExitCode::refused;
  }
  RecoveryLocks locks;
  locks.of_vm.push_back(std::move(*lock));
  return run_recovery(RecoverCommand{command.common, command.destination, std::nullopt},
                      std::move(locks), reporter, clock);
}

ExitCode run_recover(const RecoverCommand& command, const Clock& clock) {
  Reporter reporter = reporter_for(command.common, clock);
  const std::string& run_dir = command.common.run_dir;
  const std::string& name = command.destination.name;
  RecoveryLocks locks;
  for (const std::string& lock_name : {name + ".source", name + ".destination"}) {
    auto lock = VmLock::take_over(run_dir, lock_name, clock, kHolderPatience);
    if (!lock) {
      reporter.error(lock.error());
      return ExitCode::refused;
    }
    locks.of_vm.push_back(std::move(*lock));
  }
  // Whoever serves is ended as well. Its locks are held on: the migrate whose agent that was would bring the rest under them.
  for (const std::string& lock_name : serving_lock_names(run_dir, name)) {
    auto lock = VmLock::take_over(run_dir, lock_name, clock, kHolderPatience);
    if (!lock) {
      reporter.error(lock.error());
      return ExitCode::refused;
    }
    locks.of_ended.push_back(std::move(*lock));
  }
  return run_recovery(command, std::move(locks), reporter, clock);
}

namespace {

Result<nlohmann::json> look_at_status(const StatusCommand& command, HandOff& hand_off,
                                      const Clock& clock) {
  PF_ASSIGN(const OwnershipSnapshot snapshot, hand_off.read());
  nlohmann::json result = {{"name", command.name}, {"epochs", status_of_records(snapshot)}};
  for (const char* role : {"source", "destination"}) {
    auto reply =
        ask_control_server(socket_path(command.common, command.name, role), {{"type", "status"}});
    if (reply) result[role] = (*reply)["status"];
  }
  for (const std::string& path : serving_socket_paths(command.common.run_dir, command.name)) {
    auto reply = ask_control_server(path, {{"type", "status"}});
    if (reply) result["serving"] = (*reply)["status"];
  }
  nlohmann::json hooks = status_of_hooks(command.common.run_dir, command.name, hand_off, clock);
  if (!hooks.empty()) result["vmms"] = std::move(hooks);
  return result;
}

}  // namespace

ExitCode run_status(const StatusCommand& command, const Clock& clock) {
  constexpr int kWatchIntervalMs = 1000;
  Reporter reporter = reporter_for(command.common, clock);
  CancelSignal stop;
  const StopOnSignals on_signals(stop);
  auto hand_off = HandOff::open(command.store, command.name, VmDirectory::IfMissing::refuse, stop);
  if (!hand_off) {
    reporter.error(hand_off.error());
    return ExitCode::failed;
  }
  while (true) {
    auto status = look_at_status(command, **hand_off, clock);
    if (!status) {
      reporter.error(status.error());
      return ExitCode::failed;
    }
    reporter.finish(std::move(*status), ExitCode::done);
    if (command.mode == StatusCommand::Mode::once) return ExitCode::done;
    pollfd waiting{.fd = stop.fd(), .events = POLLIN, .revents = 0};
    ::poll(&waiting, 1, kWatchIntervalMs);
    if (stop.canceled()) return ExitCode::done;
  }
}

ExitCode run_abort(const AbortCommand& command, const Clock& clock) {
  Reporter reporter = reporter_for(command.common, clock);
  auto reply =
      ask_control_server(socket_path(command.common, command.name, "source"), {{"type", "abort"}});
  if (!reply) {
    reporter.error(Error{Errc::not_found, 0,
                         fmt::format("no migration of '{}' runs on this host ({})", command.name,
                                     reply.error().message)});
    return ExitCode::failed;
  }
  if ((*reply)["type"] != "ok") {
    reporter.error(error_of_message(*reply));
    return ExitCode::failed;
  }
  reporter.note((*reply).value("message", ""));
  reporter.finish(nlohmann::json::object(), ExitCode::done);
  return ExitCode::done;
}

}  // namespace pageferry
