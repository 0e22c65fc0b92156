// A point does what it was told once: progress reports pass some of them many times.
#include "tools/pageferry/fail_points.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "transport/os/fd.h"

namespace pageferry {
namespace {

constexpr std::string_view kWaitPrefix = "wait:";
constexpr std::chrono::milliseconds kWaitPollInterval{10};

bool is_action(std::string_view action) {
  return action == "kill" || action == "stop" || action == "error" ||
         (action.starts_with(kWaitPrefix) && action.size() > kWaitPrefix.size());
}

}  // namespace

Result<FailPoints> FailPoints::parse(const std::vector<std::string>& specs) {
  FailPoints points;
  for (const std::string& spec : specs) {
    const auto equals = spec.find('=');
    const std::string point = spec.substr(0, equals);
    const std::string action = equals == std::string::npos ? "" : spec.substr(equals + 1);
    if (std::find(std::begin(kFailPoints), std::end(kFailPoints), point) == std::end(kFailPoints)) {
      return fail(Errc::invalid, fmt::format("--fail-at: no point '{}'; points: {}", point,
                                             fmt::join(kFailPoints, " ")));
    }
    if (!is_action(action)) {
      return fail(Errc::invalid,
                  fmt::format("--fail-at {}: action '{}' is none of kill, stop, error, wait:PATH",
                              point, action));
    }
    points.actions_[point] = action;
  }
  return points;
}

Result<void> FailPoints::hit(std::string_view point) const {
  const auto found = actions_.find(point);
  if (found == actions_.end()) return {};
  {
    const std::lock_guard lock(passed_->mutex);
    if (!passed_->points.insert(std::string(point)).second) return {};
  }
  const std::string& action = found->second;
  if (action == "kill") ::kill(::getpid(), SIGKILL);
  if (action == "stop") ::kill(::getpid(), SIGSTOP);
  if (action == "error") {
    return fail(Errc::io, fmt::format("injected failure at {}", point));
  }
  if (action.starts_with(kWaitPrefix)) {
    const std::string path = action.substr(kWaitPrefix.size());
    // Tells whoever arranged this that we are here.
    const UniqueFd mark(::open((path + ".reached").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    struct stat status {};
    while (::stat(path.c_str(), &status) != 0) std::this_thread::sleep_for(kWaitPollInterval);
  }
  return {};
}

std::vector<std::string> FailPoints::specs_for(std::string_view prefix) const {
  std::vector<std::string> specs;
  for (const auto& [point, action] : actions_) {
    if (std::string_view(point).starts_with(prefix))
      specs.push_back(fmt::format("{}={}", point, action));
  }
  return specs;
}

}  // namespace pageferry
