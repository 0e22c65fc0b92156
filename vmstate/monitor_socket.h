// The unix socket under a monitor connection: connect with a bound, send with a descriptor
// attached. Knows no JSON.
//
// Thread rule: functions without state.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

// Errors: not_found (no such file), gone (nobody listens), busy (its queue of waiting clients is
// full until the deadline), invalid (path too long, no socket), io.
Result<UniqueFd> connect_monitor(const std::string& path, Deadline deadline);

// Waits until the socket takes bytes or has failed; false at the deadline.
bool wait_writable(int fd, const Deadline& deadline);

// One non-blocking sendmsg, with `attached_fd` passed along if it is not negative. Result and errno
// as of sendmsg(2).
ssize_t send_some(int socket_fd, std::string_view bytes, int attached_fd);

// The beginning of foreign text, for a message: unprintable characters replaced, cut at 80.
std::string printable(std::string_view text);

}  // namespace pageferry
