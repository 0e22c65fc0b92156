// Starts one process as the command line, directory and user say, detached from us: own session, no
// terminal, no descriptor of ours, no signal state of ours. Knows nothing of QMP.
//
// Thread rule: functions without state; safe in a program with many threads.
#pragma once

#include <string>

#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "vmstate/qemu_spawn.h"

namespace pageferry {

struct StartedChild {
  int pid = 0;  // our child until reaped
  UniqueFd pidfd;
};

// Returns once the program runs (exec succeeded). Errors: invalid or io, naming what could not be
// done and the path. Nothing is left.
Result<StartedChild> start_detached(const QemuLaunch& launch);

// How it ended: "exit status 1", "signal 6"; "" while it runs or if it is no child of ours. Leaves
// the pid taken, so that it still means this process.
std::string how_it_ended(int pid);
// Gives the pid of an ended child back. Nothing happens while it runs or if it is no child of ours.
void reap(int pid);

}  // namespace pageferry
