// HookWorker: the thread that calls the VMM. One piece of work at a time; the server's loop is told through an event when it is done, and
// so never waits for a callback: it hears of a lost pager, serves observers and hands out the userfaultfd while the VMM pauses.
//
// Thread rule: one thread, the server's; the work runs on the worker's, which takes no signals.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "vmstate/hook_protocol.h"

namespace pageferry {

// What came of it; which members count depends on the request.
struct WorkOutcome {
  Result<void> result;
  UniqueFd descriptor;                      // save_state
  std::uint64_t state_bytes = 0;            // save_state
  hook_protocol::CollectReply collected{};  // collect
};

class HookWorker {
 public:
  using Work = std::function<WorkOutcome()>;

  // Errors: no_space (no thread), io.
  static Result<std::unique_ptr<HookWorker>> start();
  // Waits for the work that is being done.
  ~HookWorker();

  // Readable when work is done.
  int fd() const { return done_event_.get(); }
  bool is_busy() const { return busy_; }
  // Precondition: not busy (checked).
  void begin(Work work);
  // nullopt: it is not done yet. Once for each begin().
  std::optional<WorkOutcome> take();

  bool is_this_thread() const { return std::this_thread::get_id() == thread_.get_id(); }

 private:
  HookWorker() = default;
  void run();

  UniqueFd done_event_;
  bool busy_ = false;  // the server's view
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ending_ = false;                 // guarded by mutex_
  Work work_;                           // guarded by mutex_
  std::optional<WorkOutcome> outcome_;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace pageferry
