// Ticker: calls a function at an interval, on a thread of its own, until destroyed. For progress
// reports only: nothing depends on when it ticks.
//
// Thread rule: constructed and destroyed on one thread; the function runs on the ticker's.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "transport/os/clock.h"

namespace pageferry {

class Ticker {
 public:
  Ticker(Nanoseconds interval, std::function<void()> tick)
      : thread_([this, interval, tick = std::move(tick)] {
          std::unique_lock lock(mutex_);
          while (!done_signal_.wait_for(lock, interval, [this] { return done_; })) tick();
        }) {}
  Ticker(const Ticker&) = delete;
  Ticker& operator=(const Ticker&) = delete;
  ~Ticker() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    done_signal_.notify_all();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable done_signal_;
  bool done_ = false;   // under mutex_
  std::thread thread_;  // last: it uses what stands above
};

}  // namespace pageferry
