// One detached thread for each step; two signals in one poll(2). A step that finished wins over a cancel that came meanwhile.
#include "tools/pageferry/store_step.h"

#include <fmt/format.h>
#include <poll.h>

#include <cerrno>
#include <system_error>
#include <thread>

#include "transport/cancel_signal.h"

namespace pageferry {

Result<void> run_apart(const std::string& what, const WaitBounds& bounds,
                       std::function<void()> step) {
  auto done = std::make_shared<CancelSignal>();
  try {
    std::thread([done, step = std::move(step)] {
      step();
      done->cancel();
    }).detach();
  } catch (const std::system_error& error) {
    return fail(Errc::io, fmt::format("{}: no thread for it: {}", what, error.what()));
  }
  while (!done->canceled()) {
    if (bounds.cancel != nullptr && bounds.cancel->canceled()) {
      return fail(Errc::canceled, fmt::format("{}: given up", what));
    }
    if (bounds.deadline.passed()) {
      return fail(Errc::timeout, fmt::format("{}: no answer from the store", what));
    }
    pollfd waiting[2] = {{done->fd(), POLLIN, 0}, {-1, POLLIN, 0}};
    if (bounds.cancel != nullptr) waiting[1].fd = bounds.cancel->fd();
    const int ready = ::poll(waiting, 2, bounds.deadline.poll_timeout_ms());
    if (ready < 0 && errno != EINTR) return syscall_error("poll", what);
  }
  return {};
}

}  // namespace pageferry
