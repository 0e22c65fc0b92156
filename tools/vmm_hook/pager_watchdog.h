// PagerWatchdog: starts a new pager when one that was restoring this guest is gone and pages are still missing. At most once a second, not
// while the one before still runs, and no more than kStartsMax times in a row without a page brought: then something is wrong that starting
// does not cure, and a person is needed.
//
// Thread rule: one thread, the hook server's.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "tools/vmm_hook/incoming_memory.h"
#include "transport/os/clock.h"

namespace pageferry {

class PagerWatchdog {
 public:
  static constexpr unsigned kStartsMax = 60;

  // {socket} in the words stands for the path.
  PagerWatchdog(std::vector<std::string> command, const std::string& socket_path);

  void restorer_came() { due_at_.reset(); }
  void restorer_left(Nanoseconds now) { due_at_ = now; }

  // When look() has something to do; nullopt: not before a restorer leaves.
  std::optional<Nanoseconds> due_at() const { return due_at_; }
  // Starts a pager if it is due. `memory`: whose pages are missing; nullptr: none are.
  void look(Nanoseconds now, const IncomingMemory* memory);

 private:
  bool is_running();

  std::vector<std::string> command_;
  std::optional<Nanoseconds> due_at_;
  pid_t pager_ = -1;  // the last one that was started, until it has ended
  unsigned starts_in_a_row_ = 0;
  std::uint64_t bytes_there_ = 0;
};

}  // namespace pageferry
