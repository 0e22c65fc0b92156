// SignalsBlocked: while it lives, this thread takes no signal, and threads that it starts are born that way and stay so. Signals are for
// the threads that asked for them (pthread_sigmask(3): a new thread inherits the mask of its creator).
//
// Thread rule: construct and destroy on one thread. Lifetime: a scope around the start of a thread.
#pragma once

#include <csignal>

namespace pageferry {

class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_{};
};

}  // namespace pageferry
