// StopOnSignals: while it lives, SIGINT and SIGTERM cancel a CancelSignal instead of ending the process.
//
// Thread rule: one at a time in a process. Lifetime: the CancelSignal outlives it.
#pragma once

#include <signal.h>

#include <array>
#include <atomic>

#include "transport/cancel_signal.h"

namespace pageferry {

class StopOnSignals {
 public:
  explicit StopOnSignals(CancelSignal& stop) {
    told_ = &stop;
    struct sigaction action {};
    action.sa_handler = [](int) {
      if (CancelSignal* const to_cancel = told_) to_cancel->cancel();
    };
    action.sa_flags = SA_RESTART;
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
      ::sigaction(kSignals[i], &action, &before_[i]);
    }
  }
  ~StopOnSignals() {
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
      ::sigaction(kSignals[i], &before_[i], nullptr);
    }
    told_ = nullptr;
  }
  StopOnSignals(const StopOnSignals&) = delete;
  StopOnSignals& operator=(const StopOnSignals&) = delete;

 private:
  static constexpr std::array<int, 2> kSignals{SIGINT, SIGTERM};
  static inline std::atomic<CancelSignal*> told_{nullptr};  // what a signal handler may read
  std::array<struct sigaction, 2> before_{};
};

}  // namespace pageferry
