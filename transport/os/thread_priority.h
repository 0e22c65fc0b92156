// What the scheduler is told about a thread that somebody waits for. Best effort: a kernel or a user
// that may not do it leaves the thread as it is.
//
// Thread rule: acts on the calling thread.
#pragma once

namespace pageferry {

// Asks to run soon after waking up, for short times: a higher weight where we are allowed to
// (CAP_SYS_NICE), and a short time slice, which since Linux 6.12 lets a thread run before others
// that want long ones, and needs no privilege. For threads that mostly sleep. Threads and processes
// that it starts do not inherit it.
void prefer_quick_wakeup();

}  // namespace pageferry
