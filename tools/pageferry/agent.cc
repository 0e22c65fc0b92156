// The destination's side of `migrate`: prepares while the source still runs, takes over when the
// release is on the store, and then needs nobody. The source's messages are hints; before it
// claims, it reads the records itself.
//
//   in:   prepare, preload, committed, released, cancel, source-ended
//   out:  prepared, running, progress, resident, failed, warning
//
// When the channel closes before the release: if the store holds a release of our image, go on;
// else end, nothing was touched.
#include "tools/pageferry/agent.h"

#include <fmt/format.h>
#include <unistd.h>

#include "tools/pageferry/control_server.h"
#include "tools/pageferry/destination_migration.h"
#include "tools/pageferry/host_forward_message.h"
#include "tools/pageferry/map_block_message.h"
#include "tools/pageferry/option_names.h"
#include "tools/pageferry/serving_lock.h"
#include "transport/message_channel.h"
#include "transport/os/thread_priority.h"
#include "transport/vm_lock.h"

namespace pageferry {
namespace {

// How often the records are looked at while no hint comes.
constexpr Milliseconds kStorePollInterval{250};

class Agent {
 public:
  Agent(AgentCommand command, MessageChannel& channel, const Clock& clock)
      : command_(std::move(command)), channel_(channel), clock_(clock) {}

  ExitCode run();

 private:
  Result<void> wait_for_prepare();
  Result<void> prepare();
  Result<std::optional<GuestState>> wait_for_release();
  Result<std::optional<GuestState>> look_for_release();
  ExitCode take_over(const GuestState& state);
  void let_others_move_on();
  ExitCode serve();
  void hear_while_serving();
  ExitCode report(const Error& error, ExitCode code);
  void tell(const nlohmann::json& message);

  AgentCommand command_;
  MessageChannel& channel_;
  const Clock& clock_;
  CancelSignal stop_;
  DestinationOptions options_;
  std::string attempt_;
  Epoch source_epoch_{0};
  bool source_ended_ = false;
  std::optional<VmLock> lock_;
  std::optional<ServingLock> serving_;
  std::unique_ptr<HandOff> hand_off_;
  std::unique_ptr<DestinationMigration> migration_;
};

void Agent::tell(const nlohmann::json& message) {
  // The source may be gone by now; that changes nothing here.
  [[maybe_unused]] const auto sent = channel_.send(message);
}

ExitCode Agent::report(const Error& error, ExitCode code) {
  tell({{"type", "failed"},
        {"error-class", errc_name(error.code)},
        {"error-desc", error.message},
        {"exit-code", static_cast<int>(code)}});
  return code;
}

Result<void> Agent::wait_for_prepare() {
  PF_ASSIGN(const auto message, channel_.receive(Deadline::never()));
  if (!message || (*message)["type"] != "prepare") {
    return fail(Errc::invalid, "the first message is not 'prepare'");
  }
  try {
    options_.store = message->at("store");
    options_.name = message->at("name");
    attempt_ = message->at("attempt");
    source_epoch_ = Epoch{message->at("epoch").get<std::uint32_t>()};
    const auto order = find_named(kPrefetchOrderNames, message->at("prefetch").get<std::string>());
    const auto placement = find_named(kPlacementNames, message->at("placement").get<std::string>());
    if (!order || !placement) {
      return fail(Errc::invalid, "message 'prepare': unknown prefetch order or placement");
    }
    options_.order = *order;
    options_.placement = *placement;
    options_.keep = message->at("keep").get<bool>() ? KeepImage::yes : KeepImage::no;
    options_.incoming_command = message->at("incoming-command");
  } catch (const nlohmann::json::exception& error) {
    return fail(Errc::invalid, fmt::format("message 'prepare': {}", error.what()));
  }
  return {};
}

Result<void> Agent::prepare() {
  PF_ASSIGN(lock_, VmLock::acquire(command_.common.run_dir, options_.name + ".destination"));
  PF_ASSIGN(hand_off_,
            HandOff::open(options_.store, options_.name, VmDirectory::IfMissing::refuse, stop_));
  migration_ =
      std::make_unique<DestinationMigration>(options_, command_.common, *hand_off_, clock_);
  PF_TRY(migration_->prepare(attempt_));
  nlohmann::json prepared = {{"type", "prepared"}, {"machine", migration_->machine()}};
  prepared["destination"] = migration_->destination_json();
  return channel_.send(prepared);
}

Result<std::optional<GuestState>> Agent::look_for_release() {
  PF_ASSIGN(const OwnershipSnapshot snapshot, hand_off_->read());
  // Nobody will say so: the source may wait for our word as we wait for its.
  if (!snapshot.empty() && raw(snapshot.highest()) > raw(source_epoch_)) {
    return fail(Errc::not_owner,
                fmt::format("another candidate won epoch {}", raw(next(source_epoch_))));
  }
  if (claimable_epoch(snapshot) != next(source_epoch_)) return std::optional<GuestState>();
  GuestState state = image_for(snapshot, next(source_epoch_));
  if (!state.image || state.image->attempt != attempt_) return std::optional<GuestState>();
  return std::optional<GuestState>(std::move(state));
}

// nullopt: the migration was given up.
Result<std::optional<GuestState>> Agent::wait_for_release() {
  bool preloading = false;
  while (true) {
    // A step of preloading is short; a message goes first.
    const Nanoseconds patience = preloading ? Nanoseconds(0) : kStorePollInterval;
    const auto message = channel_.receive(Deadline::after(clock_, patience));
    if (!message && message.error().code == Errc::gone) return look_for_release();
    if (!message) return tl::make_unexpected(message.error());
    const std::string type = *message ? (**message)["type"].get<std::string>() : "";
    if (type == "cancel") return std::optional<GuestState>();
    if (type == "preload") {
      preloading = true;
      const auto rewritten = (**message).find("rewritten");
      if (rewritten != (**message).end()) {
        migration_->forget(map_block_runs_from_json(*rewritten));
      }
    } else if (type == "committed") {
      preloading = false;
      PF_TRY(migration_->load_early());
    } else if (!*message && preloading) {
      preloading = migration_->preload();
    } else {
      PF_ASSIGN(auto state, look_for_release());
      if (state) return state;
    }
  }
}

// All that is left is to bring pages.
void Agent::let_others_move_on() {
  if (!migration_->can_be_moved_on()) return;
  auto serving = ServingLock::acquire(command_.common.run_dir, options_.name, next(source_epoch_));
  if (!serving) return tell({{"type", "warning"}, {"text", serving.error().message}});
  serving_.emplace(std::move(*serving));
  lock_.reset();
}

ExitCode Agent::take_over(const GuestState& state) {
  auto outcome = migration_->take_over(next(source_epoch_), state);
  if (!outcome) {
    const bool maybe_runs = migration_->ran();
    return report(outcome.error(), maybe_runs || outcome.error().code != Errc::not_owner
                                       ? ExitCode::recoverable
                                       : ExitCode::lost_claim);
  }
  if (*outcome == TakeOver::lost) {
    return report(Error{Errc::not_owner, 0, "another candidate won"}, ExitCode::lost_claim);
  }
  let_others_move_on();
  nlohmann::json running = {{"type", "running"}, {"epoch", raw(next(source_epoch_))}};
  running["downtime-split"] = migration_->downtime_split();
  running["destination"] = migration_->destination_json();
  running["resumed-at-ns"] = migration_->resumed_at().count();
  tell(running);
  return serve();
}

// While pages are served the only news is that the source has ended, so that its ports are free.
void Agent::hear_while_serving() {
  while (!source_ended_) {
    auto message = channel_.receive(Deadline::after(clock_, Nanoseconds(0)));
    if (!message || !*message) return;
    if ((**message)["type"] != "source-ended") continue;
    source_ended_ = true;
    auto forwards =
        host_forwards_from_json((**message).value("host-forwards", nlohmann::json::array()));
    auto added = forwards ? migration_->add_forwards(*forwards)
                          : Result<void>(tl::make_unexpected(forwards.error()));
    if (!added) tell({{"type", "warning"}, {"text", added.error().message}});
  }
}

ExitCode Agent::serve() {
  if (auto announced = migration_->announce(); !announced) {
    tell({{"type", "warning"}, {"text", announced.error().message}});
  }
  auto finished = migration_->finish([this](const nlohmann::json& progress) {
    nlohmann::json message = progress;
    message["type"] = "progress";
    tell(message);
    hear_while_serving();
  });
  hear_while_serving();
  if (!finished) {
    const bool corrupt =
        finished.error().code == Errc::corrupt || finished.error().code == Errc::io;
    return report(finished.error(), corrupt ? ExitCode::state_lost : ExitCode::recoverable);
  }
  for (const std::string& warning : migration_->settle()) {
    tell({{"type", "warning"}, {"text", warning}});
  }
  nlohmann::json resident = migration_->restore_json();
  resident["type"] = "resident";
  resident["destination"] = migration_->destination_json();
  tell(resident);
  return ExitCode::done;
}

ExitCode Agent::run() {
  if (auto asked = wait_for_prepare(); !asked) return report(asked.error(), ExitCode::usage);
  if (auto prepared = prepare(); !prepared) return report(prepared.error(), ExitCode::refused);
  auto state = wait_for_release();
  if (!state) {
    const bool lost = state.error().code == Errc::not_owner;
    return report(state.error(), lost ? ExitCode::lost_claim : ExitCode::failed);
  }
  if (!*state) return ExitCode::aborted;
  return take_over(**state);
}

}  // namespace

ExitCode run_agent(const AgentCommand& command, const Clock& clock) {
  prefer_quick_wakeup();  // in the blackout the guest waits for each step of this thread
  MessageChannel channel(UniqueFd(::dup(STDIN_FILENO)), UniqueFd(::dup(STDOUT_FILENO)));
  return Agent(command, channel, clock).run();
}

}  // namespace pageferry
