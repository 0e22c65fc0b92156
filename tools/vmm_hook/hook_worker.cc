// No queue: the server holds what comes next, because whether it may be done depends on what came of this.
#include "tools/vmm_hook/hook_worker.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <exception>
#include <memory>
#include <system_error>
#include <utility>

#include "transport/os/signals_blocked.h"

namespace pageferry {

Result<std::unique_ptr<HookWorker>> HookWorker::start() {
  std::unique_ptr<HookWorker> worker(new HookWorker);
  worker->done_event_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!worker->done_event_.valid()) return syscall_error("eventfd", "of the hook");
  const SignalsBlocked none_for_the_thread;
  try {
    worker->thread_ = std::thread([self = worker.get()] { self->run(); });
  } catch (const std::system_error& error) {
    return fail(Errc::no_space, fmt::format("no thread for the hook: {}", error.what()));
  }
  return worker;
}

HookWorker::~HookWorker() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void HookWorker::begin(Work work) {
  PF_CHECK(!busy_);
  busy_ = true;
  {
    const std::lock_guard lock(mutex_);
    work_ = std::move(work);
  }
  wake_.notify_one();
}

std::optional<WorkOutcome> HookWorker::take() {
  std::uint64_t count = 0;
  static_cast<void>(!::read(done_event_.get(), &count, sizeof count));
  const std::lock_guard lock(mutex_);
  if (!outcome_) return std::nullopt;
  busy_ = false;
  return std::exchange(outcome_, std::nullopt);
}

void HookWorker::run() {
  for (;;) {
    Work work;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return ending_ || work_ != nullptr; });
      if (work_ == nullptr) return;
      work = std::exchange(work_, nullptr);
    }
    WorkOutcome outcome;
    try {
      outcome = work();
    } catch (const std::exception& error) {
      outcome.result = fail(Errc::no_space, fmt::format("the hook: {}", error.what()));
    }
    {
      const std::lock_guard lock(mutex_);
      outcome_ = std::move(outcome);
    }
    const std::uint64_t one = 1;
    static_cast<void>(!::write(done_event_.get(), &one, sizeof one));
  }
}

}  // namespace pageferry
