// One function for each question. The words of a refusal say where the guest is, because that is what the asker got wrong.
#include "tools/vmm_hook/guest_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace pageferry {

using hook_protocol::Request;
using hook_protocol::Type;

HookState GuestState::state() const {
  switch (place_) {
    case Place::paused:
      return HookState::paused;
    case Place::committed:
      return HookState::committed;
    case Place::incoming:
      return HookState::incoming;
    case Place::moved_away:
      return HookState::moved_away;
    case Place::here:
      break;
  }
  if (pages_missing_) return HookState::restoring;
  return mover_ ? HookState::moving : HookState::running;
}

hook_protocol::GuestFacts GuestState::facts() const {
  return {.state = state(),
          .has_epoch = epoch_.has_value(),
          .epoch = epoch_.value_or(0),
          .attempt_id = attempt_id_,
          .tracked_since_attempt = knows_restored_writes_ ? attempt_id_ : ""};
}

Unexpected GuestState::refused(std::string_view what) const {
  static constexpr std::array kPlaces = {"runs", "is paused", "was committed", "has not come yet",
                                         "runs elsewhere"};
  return fail(Errc::vmm,
              fmt::format("{}: the guest {}{}", what, kPlaces[static_cast<std::size_t>(place_)],
                          forsaken_ ? " and is about to be resumed" : ""));
}

Result<void> GuestState::check_role(Type type, HookRole role) const {
  switch (type) {
    case Type::track:
    case Type::collect:
    case Type::untrack:
    case Type::pause:
    case Type::save_state:
    case Type::commit:
    case Type::end:
      if (role == HookRole::mover) return {};
      return fail(Errc::vmm, "only a mover may ask for that");
    case Type::take_userfault:
    case Type::load_state:
    case Type::resident:
      if (role == HookRole::restorer) return {};
      return fail(Errc::vmm, "only a restorer may ask for that");
    case Type::resume:
    case Type::share_progress:
      if (role != HookRole::observer) return {};
      return fail(Errc::vmm, "an observer may not ask for that");
    default:
      return {};
  }
}

Result<void> GuestState::check_track(const std::string& since_attempt) const {
  if (tracked_) return fail(Errc::vmm, "track: writes are tracked already");
  if (place_ != Place::here) return refused("track");
  if (since_attempt.empty() || since_attempt == facts().tracked_since_attempt) return {};
  return fail(Errc::not_found,
              fmt::format("track: not every write since attempt '{}' is known", since_attempt));
}

Result<void> GuestState::check_commit(std::uint64_t epoch) const {
  if (place_ != Place::paused || forsaken_) return refused("commit");
  if (!epoch_ || epoch >= *epoch_) return {};
  return fail(Errc::vmm,
              fmt::format("commit of epoch {}: the guest runs under epoch {}", epoch, *epoch_));
}

Result<void> GuestState::check_resume(std::uint64_t epoch) const {
  if (place_ == Place::incoming) {
    if (!attempt_id_.empty()) return {};
    return fail(Errc::vmm, "resume: no device state was loaded");
  }
  if (place_ != Place::committed) return refused("resume");
  if (epoch > committed_.value_or(0)) return {};
  return fail(Errc::vmm, fmt::format("resume under epoch {}: epoch {} was committed here", epoch,
                                     committed_.value_or(0)));
}

Result<void> GuestState::check(const Request& request, HookRole role) const {
  PF_TRY(check_role(request.type, role));
  switch (request.type) {
    case Type::track:
      return check_track(request.attempt_id);
    case Type::collect:
    case Type::untrack:
      if (!tracked_) return fail(Errc::vmm, "writes are not tracked");
      return {};
    case Type::pause:
      if (place_ != Place::here) return refused("pause");
      if (pages_missing_) return fail(Errc::vmm, "pause: pages of the guest are missing");
      return {};
    case Type::save_state:
      if (place_ != Place::paused || forsaken_) return refused("save_state");
      return {};
    case Type::commit:
      return check_commit(request.epoch);
    case Type::resume:
      return check_resume(request.epoch);
    case Type::end:
      if (place_ != Place::committed) return refused("end");
      return {};
    case Type::take_userfault:
    case Type::resident:
      if (!pages_missing_) return fail(Errc::vmm, "no pages are missing");
      return {};
    case Type::load_state:
      if (place_ != Place::incoming) return refused("load_state");
      if (!attempt_id_.empty()) {
        return fail(Errc::vmm, fmt::format("load_state: attempt '{}' was loaded", attempt_id_));
      }
      return {};
    default:
      return {};
  }
}

void GuestState::mover_left() {
  mover_ = false;
  forsake();
}

void GuestState::committed(std::uint64_t epoch) {
  place_ = Place::committed;
  epoch_ = epoch;
  committed_ = std::max(epoch, committed_.value_or(0));
}

void GuestState::resumed(std::uint64_t epoch) {
  place_ = Place::here;
  epoch_ = epoch;
}

void GuestState::resumed_by_itself() {
  place_ = Place::here;
  forsaken_ = false;
}

}  // namespace pageferry
