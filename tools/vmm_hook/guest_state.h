// GuestState: where the guest is, and what follows from that: which request may be made now, by whom, and what becomes of it. Rules only;
// it calls nobody and knows no socket.
//
//   here --pause--> paused --commit(N)--> committed --resume(M > N)--> here          here: runs
//     ^               |                       |
//     +-- lost, late -+                       +--end--> moved_away
//
//   incoming --load--> incoming, loaded --resume(N)--> here          and beside it: pages are missing, until resident. So long it may be
//                                                                    tracked, and not paused: whoever waits for a page cannot be
//
// A paused guest whose pager was lost, or whose limit has passed, is forsaken: nothing is granted for it any more, commit least of all,
// until it runs again. That a commit and a limit exclude each other is decided here, by one thread.
//
// Thread rule: one thread, the hook server's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "tools/vmm_hook/hook_config.h"
#include "transport/os/error.h"
#include "vmstate/hook_protocol.h"

namespace pageferry {

class GuestState {
 public:
  enum class Place : std::uint8_t { here, paused, committed, incoming, moved_away };

  explicit GuestState(HookStart start)
      : place_(start == HookStart::incoming ? Place::incoming : Place::here),
        pages_missing_(start == HookStart::incoming) {}

  Place place() const { return place_; }
  bool is_tracked() const { return tracked_; }
  bool are_pages_missing() const { return pages_missing_; }
  bool is_forsaken() const { return forsaken_; }
  HookState state() const;
  hook_protocol::GuestFacts facts() const;

  // Whether this may be done now. Errors: vmm (not now, or not by this role), invalid.
  Result<void> check(const hook_protocol::Request& request, HookRole role) const;

  // What happened. Preconditions: check() of the request it answers, where there is one.
  void mover_came() { mover_ = true; }
  void mover_left();
  // Its pager will not commit any more: lost, or too late.
  void forsake() { forsaken_ = place_ == Place::paused; }
  void tracking(bool on) { tracked_ = on; }
  void paused() { place_ = Place::paused; }
  void committed(std::uint64_t epoch);
  void resumed(std::uint64_t epoch);
  void resumed_by_itself();
  void ended() { place_ = Place::moved_away; }
  void loaded(std::string attempt_id) { attempt_id_ = std::move(attempt_id); }
  void became_resident() { pages_missing_ = false; }
  // Whether every write since the first page was placed is known.
  void knows_restored_writes(bool knows) { knows_restored_writes_ = knows; }

 private:
  Result<void> check_role(hook_protocol::Type type, HookRole role) const;
  Result<void> check_track(const std::string& since_attempt) const;
  Result<void> check_commit(std::uint64_t epoch) const;
  Result<void> check_resume(std::uint64_t epoch) const;
  Unexpected refused(std::string_view what) const;

  Place place_;
  bool mover_ = false;
  bool tracked_ = false;
  bool pages_missing_;
  bool forsaken_ = false;
  bool knows_restored_writes_ = false;
  std::optional<std::uint64_t> epoch_;      // of the last commit or resume
  std::optional<std::uint64_t> committed_;  // the greatest
  std::string attempt_id_;
};

}  // namespace pageferry
