// FailPoints: numbered places in a migration where a test (or an operator who rehearses) makes the
// tool die, stop or wait: `--fail-at POINT=ACTION`. A product feature, documented in
// docs/fault-injection.md; nothing happens unless it is asked for.
//
// Points are hit in order of the hand-off; their names are the phases of docs/failure-model.md.
// Actions:
//   kill       SIGKILL to this process
//   stop       SIGSTOP to this process (SIGCONT continues it)
//   error      the step fails as if its I/O had failed
//   wait:PATH  makes PATH.reached, waits until PATH exists (looked for every 10 ms; for scripts
//              that arrange a race)
//
// Thread rule: internally locked; copies share which points were passed.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "transport/os/error.h"

namespace pageferry {

// Every place that exists; parse() refuses other names.
inline constexpr std::string_view kFailPoints[] = {
    "source.base-linked",         // --base: its files are in the attempt's directory
    "source.setup",               // capabilities set, nothing captured yet
    "source.pass1",               // first progress report of pass 1
    "source.later-pass",          // first progress report of a later pass
    "source.blackout",            // guest stopped, before the last pages
    "source.before-commit",       // all pages and state written, page file not committed
    "source.before-shut",         // page file committed, SHUT(0) not sent
    "source.after-shut",          // QMP said completed, released.N not written
    "source.after-release",       // released.N is durable, destination not told
    "destination.prepared",       // destination QEMU waits for its device state
    "destination.loaded",         // device state loaded, owner.N+1 not written
    "destination.after-owner",    // owner.N+1 is durable, running.N+1 not written
    "destination.after-running",  // running.N+1 is durable, `cont` not sent
    "destination.restoring",      // guest runs, first progress report of the restore
};

class FailPoints {
 public:
  FailPoints() = default;
  // Each spec is POINT=ACTION. Errc::invalid names what is unknown.
  static Result<FailPoints> parse(const std::vector<std::string>& specs);

  // Does what was asked for, the first time this point is passed; Errc::io for `error`. Precondition: `point` is in
  // kFailPoints.
  Result<void> hit(std::string_view point) const;

  // The specs whose points begin with `prefix`, to pass on to another process.
  std::vector<std::string> specs_for(std::string_view prefix) const;

 private:
  struct Passed {
    std::mutex mutex;
    std::set<std::string, std::less<>> points;  // under mutex
  };
  std::map<std::string, std::string, std::less<>> actions_;
  std::shared_ptr<Passed> passed_ = std::make_shared<Passed>();  // copies are the same points
};

}  // namespace pageferry
