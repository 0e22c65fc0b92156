// BlackoutGuard: a thread that never touches the store and gives the blackout up when it lasts too
// long: the guest then runs on at the source, however the store hangs. Only before SHUT(0): the
// action it calls decides that in one atomic step. disarm() says in one step, too, whether it came
// to that: after it nothing is given up.
//
// Thread rule: constructed and destroyed on one thread; the action runs on the guard's own.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "transport/os/clock.h"

namespace pageferry {

class BlackoutGuard {
 public:
  // `give_up` must not block; true when it was in time.
  BlackoutGuard(Nanoseconds limit, std::function<bool()> give_up)
      : until_(std::chrono::steady_clock::now() + limit),
        thread_([this, give_up = std::move(give_up)] {
          std::unique_lock lock(mutex_);
          if (done_signal_.wait_until(lock, until_, [this] { return done_; })) return;
          fired_ = give_up();
        }) {}
  BlackoutGuard(const BlackoutGuard&) = delete;
  BlackoutGuard& operator=(const BlackoutGuard&) = delete;
  ~BlackoutGuard() { [[maybe_unused]] const bool fired = disarm(); }

  // The blackout is over: the guard gives nothing up from here on. True: it has, in time.
  [[nodiscard]] bool disarm() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    done_signal_.notify_all();
    if (thread_.joinable()) thread_.join();
    return fired_;
  }

 private:
  // From the construction, not from when the thread gets to run.
  const std::chrono::steady_clock::time_point until_;
  std::mutex mutex_;
  std::condition_variable done_signal_;
  bool done_ = false;  // under mutex_
  std::atomic<bool> fired_{false};
  std::thread thread_;  // last: it uses what stands above
};

}  // namespace pageferry
