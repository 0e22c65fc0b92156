// A step that touches the store, on a thread of its own. The caller only waits in poll(2), so that a store that hangs (nothing ends
// an open, stat or fsync from outside) never keeps it from hearing a cancel or from seeing its time pass. A step that was given up
// is left behind: it ends when the store answers, or with the process.
//
// Thread rule: from any thread. Lifetime: `step` owns or shares everything that it uses; it may outlive the caller.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "transport/os/error.h"
#include "transport/storage_wait.h"

namespace pageferry {

// Errc::canceled, Errc::timeout: left behind, whether it was done is unknown. Errc::io: no thread was to be had.
Result<void> run_apart(const std::string& what, const WaitBounds& bounds,
                       std::function<void()> step);

// The same for a step with an outcome. `what` names it in messages.
template <typename T>
Result<T> run_store_step(const std::string& what, const WaitBounds& bounds,
                         std::function<Result<T>()> step) {
  auto outcome = std::make_shared<std::optional<Result<T>>>();
  PF_TRY(run_apart(what, bounds, [outcome, step = std::move(step)] { outcome->emplace(step()); }));
  return std::move(**outcome);
}

}  // namespace pageferry
