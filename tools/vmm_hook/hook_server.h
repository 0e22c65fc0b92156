// HookServer: serves pagers on the hook's socket, and decides what is done next for the guest. Its loop never waits for anything but the
// next event: callbacks run on the worker.
//
//   connection --request--> rules (guest_state.h) --refused--> error
//                                  | granted
//                                  +-- answered at once: state, slots, descriptors, commit
//                                  +-- waits its turn --> worker (hook_work.h) --> state, answer
//
// Before the next request's turn comes what nobody asks for: a guest that its pager left paused is resumed, and its tracking ended.
//
// Thread rule: state() any thread; start() and stop() one; all else the loop's own thread. Lifetime: the work outlives it.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tools/vmm_hook/guest_state.h"
#include "tools/vmm_hook/hook_work.h"
#include "tools/vmm_hook/hook_worker.h"
#include "tools/vmm_hook/pager_watchdog.h"
#include "transport/cancel_signal.h"
#include "transport/os/clock.h"
#include "vmstate/hook_packet.h"

namespace pageferry {

class HookServer {
 public:
  // Errors: exists (somebody listens on the socket), invalid, no_space, io.
  static Result<std::unique_ptr<HookServer>> start(HookWork& work);
  ~HookServer();

  HookState state() const { return state_.load(); }
  bool is_called_by_callback() const { return worker_->is_this_thread(); }
  // Gives up what is not committed and ends the threads. Errors: vmm (the guest could not be resumed; the threads have ended). Once.
  Result<void> stop();

 private:
  using ConnectionId = std::uint64_t;
  struct Connection {
    UniqueFd fd;
    pid_t pid = 0;
    std::optional<HookRole> role;  // after hello
    bool waits = false;            // for an answer; nothing is read from it until then
    Nanoseconds hello_until{0};
  };
  // What the worker shall do or does; nobody's for what the hook does by itself.
  struct Turn {
    std::optional<ConnectionId> from;
    hook_protocol::Request request;
    UniqueFd descriptor;
  };
  enum class Care : std::uint8_t { resume, untrack, tell_moved_away, tell_resident };

  explicit HookServer(HookWork& work) : work_(work), guest_(work.config().start) {}

  // hook_server.cc: the loop and the connections
  void run();
  void wait();
  int wait_ms() const;
  void accept_all();
  void read_from(ConnectionId id);
  void drop(ConnectionId id);
  void drop_all();
  void drop_silent();
  void answer(ConnectionId id, std::span<const std::byte> packet, int descriptor = -1);
  void refuse(ConnectionId id, std::uint32_t serial, const Error& error);
  std::optional<ConnectionId> holder_of(HookRole role) const;

  // hook_server_requests.cc: what is asked, and what is done
  void serve(ConnectionId id, HookPacket packet);
  Result<void> grant(ConnectionId id, hook_protocol::Request request, UniqueFd descriptor);
  Result<void> check_against_worker(hook_protocol::Type type) const;
  Result<void> greet(ConnectionId id, const hook_protocol::Request& request);
  Result<void> answer_at_once(ConnectionId id, const hook_protocol::Request& request);
  Result<void> answer_slot(ConnectionId id, const hook_protocol::Request& request);
  void give_next_turn();
  bool take_care();
  void begin_care(Care care);
  void begin(Turn turn);
  void finish(WorkOutcome outcome);
  void finish_care(Care care, const Result<void>& result);
  void finish_turn(const Turn& turn, WorkOutcome outcome);
  void note_done(const Turn& turn);
  void check_limit();
  void publish() {
    guest_.knows_restored_writes(work_.knows_restored_writes());
    state_.store(guest_.state());
  }

  HookWork& work_;
  GuestState guest_;
  std::atomic<HookState> state_{HookState::running};
  MonotonicClock clock_;
  UniqueFd listener_;
  CancelSignal stop_;
  std::unique_ptr<HookWorker> worker_;
  std::optional<PagerWatchdog> watchdog_;

  std::map<ConnectionId, Connection> connections_;
  ConnectionId next_id_ = 1;
  bool mover_is_gone_ = false;  // and its tracking may still be on
  UniqueFd progress_;           // of the pager that shared it last
  std::deque<Turn> waiting_;
  std::optional<Turn> turn_;              // at the worker
  std::optional<Care> care_;              // the same
  std::deque<Care> told_;                 // notices that are due
  std::optional<Nanoseconds> limit_at_;   // of the pause
  std::optional<Nanoseconds> resume_at_;  // the next attempt, after one that failed
  Result<void> stopped_;                  // why the guest could not be resumed at the end
  std::thread thread_;
};

}  // namespace pageferry
