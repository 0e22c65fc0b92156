// Requests are checked twice when they have to wait for their turn: when they come, and when it is theirs. Commit does not wait: it is one
// step of this thread, and so is the end of a pause's limit; whichever is first wins.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "tools/vmm_hook/hook_server.h"
#include "vmstate/hook_progress.h"
#include "vmstate/sealed_memory.h"

namespace pageferry {
namespace {

using hook_protocol::Request;
using hook_protocol::Type;

constexpr Milliseconds kBetweenResumes{500};
constexpr std::size_t kObserversMax = 16;

hook_protocol::ReplyHeader reply_to(const Request& request) {
  return {.type = request.type, .serial = request.serial};
}

bool takes_a_turn(Type type) {
  switch (type) {
    case Type::track:
    case Type::collect:
    case Type::untrack:
    case Type::pause:
    case Type::save_state:
    case Type::resume:
    case Type::load_state:
    case Type::resident:
      return true;
    default:
      return false;
  }
}

}  // namespace

void HookServer::serve(ConnectionId id, HookPacket packet) {
  auto request = hook_protocol::decode_request(packet.bytes);
  if (!request) {
    refuse(id, 0, request.error());
    return drop(id);
  }
  if (packet.descriptors.size() != hook_protocol::descriptors_with(request->type)) {
    refuse(id, request->serial,
           fail(Errc::invalid,
                fmt::format("request {} came with {} descriptors",
                            static_cast<unsigned>(request->type), packet.descriptors.size()))
               .value());
    return drop(id);
  }
  UniqueFd descriptor;
  if (!packet.descriptors.empty()) descriptor = std::move(packet.descriptors.front());
  const bool greeted = connections_.at(id).role.has_value();
  if (greeted == (request->type == Type::hello)) {
    refuse(id, request->serial, fail(Errc::invalid, "hello comes first, and once").value());
    return drop(id);
  }
  const std::uint32_t serial = request->serial;
  if (auto granted = grant(id, std::move(*request), std::move(descriptor)); !granted) {
    refuse(id, serial, granted.error());
    if (!greeted) drop(id);
  }
}

Result<void> HookServer::grant(ConnectionId id, Request request, UniqueFd descriptor) {
  if (request.type == Type::hello) return greet(id, request);
  if (!takes_a_turn(request.type)) {
    PF_TRY(guest_.check(request, *connections_.at(id).role));
    PF_TRY(check_against_worker(request.type));
  }
  if (request.type == Type::share_progress) {
    PF_TRY(check_sealed_memory("the progress", descriptor, kHookProgressBytes, Sealed::size));
    progress_ = std::move(descriptor);
    answer(id, encode_reply(reply_to(request)));
    return {};
  }
  if (!takes_a_turn(request.type)) return answer_at_once(id, request);
  if (request.type == Type::load_state) {
    PF_TRY(
        check_sealed_memory("the device state", descriptor, request.state_bytes, Sealed::content));
  }
  connections_.at(id).waits = true;
  waiting_.push_back(
      {.from = id, .request = std::move(request), .descriptor = std::move(descriptor)});
  return {};
}

// A pager that left without hearing the answer to RESIDENT: the next one must not be given what is about to be closed.
Result<void> HookServer::check_against_worker(Type type) const {
  if (type != Type::take_userfault || !turn_ || turn_->request.type != Type::resident) return {};
  return fail(Errc::busy, "whether every page is there is being looked at");
}

Result<void> HookServer::greet(ConnectionId id, const Request& request) {
  if (request.version_min > hook_protocol::kVersion ||
      request.version_max < hook_protocol::kVersion) {
    return fail(Errc::version,
                fmt::format("the pager speaks versions {} to {}, the hook {}", request.version_min,
                            request.version_max, hook_protocol::kVersion));
  }
  if (request.role == HookRole::observer) {
    const auto observers = std::ranges::count_if(
        connections_, [](const auto& entry) { return entry.second.role == HookRole::observer; });
    if (static_cast<std::size_t>(observers) >= kObserversMax) {
      return fail(Errc::busy, fmt::format("{} observers look at this VM already", observers));
    }
  } else if (const auto holder = holder_of(request.role)) {
    return fail(Errc::busy,
                fmt::format("process {} is this VM's {} already", connections_.at(*holder).pid,
                            request.role == HookRole::mover ? "mover" : "restorer"));
  }
  connections_.at(id).role = request.role;
  if (request.role == HookRole::mover) guest_.mover_came();
  if (request.role == HookRole::restorer && watchdog_) watchdog_->restorer_came();
  const HookConfig& config = work_.config();
  const hook_protocol::HelloReply reply{
      .version = hook_protocol::kVersion,
      .placing = work_.placing(),
      .slots = static_cast<std::uint32_t>(config.slots.size()),
      .command_words = static_cast<std::uint32_t>(config.incoming_command.size()),
      .pages = config.layout.pages(),
      .segment_bytes = work_.segment().bytes(),
      .guest = guest_.facts(),
      .vm_name = config.vm_name,
      .machine = config.machine};
  answer(id, encode_reply(reply_to(request), reply), work_.segment().descriptor());
  return {};
}

Result<void> HookServer::answer_slot(ConnectionId id, const Request& request) {
  const HookConfig& config = work_.config();
  if (request.slot >= config.slots.size()) {
    return fail(Errc::invalid,
                fmt::format("slot {}, there are {}", request.slot, config.slots.size()));
  }
  answer(id, encode_reply(reply_to(request), config.slots[request.slot]),
         config.memory[request.slot].for_pager.get());
  return {};
}

// Precondition: guest_.check().
Result<void> HookServer::answer_at_once(ConnectionId id, const Request& request) {
  switch (request.type) {
    case Type::get_state:
      answer(id, encode_reply(reply_to(request), guest_.facts()));
      return {};
    case Type::get_slot:
      return answer_slot(id, request);
    case Type::get_command:
      answer(id, encode_reply(reply_to(request), work_.config().incoming_command));
      return {};
    case Type::get_progress:
      if (!progress_.valid()) return fail(Errc::not_found, "no pager has shared its progress");
      answer(id, encode_reply(reply_to(request)), progress_.get());
      return {};
    case Type::commit:
      guest_.committed(request.epoch);
      limit_at_.reset();
      publish();
      break;
    case Type::end:
      guest_.ended();
      told_.push_back(Care::tell_moved_away);
      publish();
      break;
    case Type::take_userfault:
      answer(id, encode_reply(reply_to(request)), work_.incoming()->descriptor());
      return {};
    default:
      return fail(Errc::invalid, "the hook does not know what to do");
  }
  answer(id, encode_reply(reply_to(request)));
  return {};
}

// A guest that was left paused, or paused for too long. With a limit of its own: the pager may be stopped itself, and still be connected.
void HookServer::check_limit() {
  if (!limit_at_ || clock_.now() < *limit_at_) return;
  if (guest_.place() != GuestState::Place::paused) return;
  limit_at_.reset();
  guest_.forsake();
}

bool HookServer::take_care() {
  if (guest_.is_forsaken()) {
    if (resume_at_ && clock_.now() < *resume_at_ && !stop_.canceled()) return false;
    begin_care(Care::resume);
    return true;
  }
  if (mover_is_gone_ && guest_.is_tracked()) {
    begin_care(Care::untrack);
    return true;
  }
  mover_is_gone_ = false;
  if (told_.empty()) return false;
  const Care next = told_.front();
  told_.pop_front();
  begin_care(next);
  return true;
}

void HookServer::begin_care(Care care) {
  care_ = care;
  if (care == Care::resume) resume_at_.reset();
  worker_->begin([this, care]() -> WorkOutcome {
    switch (care) {
      case Care::resume:
        return work_.resume();
      case Care::untrack:
        return work_.untrack();
      case Care::tell_moved_away:
        return work_.tell_moved_away();
      case Care::tell_resident:
        return work_.tell_resident();
    }
    return {};
  });
}

void HookServer::finish_care(Care care, const Result<void>& result) {
  if (care == Care::untrack) guest_.tracking(false);
  if (care != Care::resume) return;
  if (result) return guest_.resumed_by_itself();
  resume_at_ = clock_.now() + kBetweenResumes;
  if (stop_.canceled()) stopped_ = result;
}

void HookServer::give_next_turn() {
  if (worker_->is_busy() || take_care()) return;
  while (!waiting_.empty() && !worker_->is_busy()) {
    Turn turn = std::move(waiting_.front());
    waiting_.pop_front();
    const ConnectionId id = *turn.from;
    if (auto checked = guest_.check(turn.request, *connections_.at(id).role); !checked) {
      refuse(id, turn.request.serial, checked.error());
      continue;
    }
    begin(std::move(turn));
  }
}

void HookServer::begin(Turn turn) {
  if (turn.request.type == Type::pause && turn.request.limit_ms > 0) {
    limit_at_ = clock_.now() + Milliseconds(turn.request.limit_ms);
  }
  turn_ = std::move(turn);
  worker_->begin([this, &now = *turn_]() -> WorkOutcome {
    switch (now.request.type) {
      case Type::track:
        return work_.track(now.request.attempt_id);
      case Type::collect:
        return work_.collect();
      case Type::untrack:
        return work_.untrack();
      case Type::pause:
        return work_.pause();
      case Type::save_state:
        return work_.save_state();
      case Type::resume:
        return work_.resume();
      case Type::load_state:
        return work_.load_state(now.descriptor, now.request.state_bytes);
      default:
        return work_.resident();
    }
  });
}

void HookServer::finish(WorkOutcome outcome) {
  if (care_) return finish_care(*std::exchange(care_, std::nullopt), outcome.result);
  finish_turn(*std::exchange(turn_, std::nullopt), std::move(outcome));
}

void HookServer::note_done(const Turn& turn) {
  switch (turn.request.type) {
    case Type::track:
      return guest_.tracking(true);
    case Type::untrack:
      return guest_.tracking(false);
    case Type::pause:
      guest_.paused();
      if (!turn.from) guest_.forsake();
      return check_limit();
    case Type::resume:
      return guest_.resumed(turn.request.epoch);
    case Type::load_state:
      return guest_.loaded(turn.request.attempt_id);
    case Type::resident:
      work_.incoming()->close_if_done();
      told_.push_back(Care::tell_resident);
      return guest_.became_resident();
    default:
      return;
  }
}

void HookServer::finish_turn(const Turn& turn, WorkOutcome outcome) {
  if (outcome.result) note_done(turn);
  // A source is stopped afterwards, whatever it says.
  if (turn.request.type == Type::untrack) guest_.tracking(false);
  if (turn.request.type == Type::pause && !outcome.result) limit_at_.reset();
  publish();
  if (!turn.from) return;
  const auto header = reply_to(turn.request);
  if (!outcome.result) return refuse(*turn.from, header.serial, outcome.result.error());
  if (turn.request.type == Type::collect) {
    return answer(*turn.from, encode_reply(header, outcome.collected));
  }
  if (turn.request.type == Type::save_state) {
    return answer(*turn.from, encode_reply(header, outcome.state_bytes), outcome.descriptor.get());
  }
  if (turn.request.type == Type::pause && guest_.is_forsaken()) {
    return refuse(
        *turn.from, header.serial,
        fail(Errc::vmm, "the limit of the pause passed before the guest was paused").value());
  }
  answer(*turn.from, encode_reply(header));
}

}  // namespace pageferry
