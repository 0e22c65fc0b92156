// FirecrackerSocket: the socket on which Firecracker, when it restores a snapshot with the memory backend `Uffd`, tells the handler of its
// page faults where its memory is, and hands over the userfaultfd. One client, one message, one descriptor; nothing is answered. The
// connection stays open for as long as Firecracker lives.
//
//   us: bind, listen        Firecracker: mmap, userfaultfd, register --> connect --> sendmsg(JSON, SCM_RIGHTS) --> resumes the guest
//
// What comes is not trusted: the client must be of our user or root, the descriptor a userfaultfd that does not block, and all of it here
// within a bounded time. A client that is refused keeps what it has: its own userfaultfd, and a closed connection.
//
// Thread rule: one thread.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "transport/cancel_signal.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "vmstate/firecracker_regions.h"

namespace pageferry {

// A client whose message was good.
struct FirecrackerClient {
  UniqueFd connection;  // until the client closes it, nothing more comes
  UniqueFd
      process;  // a pidfd, readable when the client has ended; invalid: no such process is seen from here
  pid_t pid = 0;  // 0: none is seen from here
  UniqueFd userfault;
  FirecrackerRegions regions;
};

class FirecrackerSocket {
 public:
  // A new socket, 0600. One that nobody listens on any more is replaced. Errors: exists (somebody listens there, or it is no socket),
  // invalid (the path is too long), io and others of the system.
  static Result<FirecrackerSocket> listen(std::string path);
  FirecrackerSocket(FirecrackerSocket&& other) noexcept;
  FirecrackerSocket& operator=(FirecrackerSocket&&) = delete;
  FirecrackerSocket(const FirecrackerSocket&) = delete;
  FirecrackerSocket& operator=(const FirecrackerSocket&) = delete;
  // Removes the path.
  ~FirecrackerSocket();

  const std::string& path() const { return path_; }

  // Waits for a client, however long that takes, and then, at most `patience`, for its message. `source_pages`: what the regions may
  // name. Who connects and closes without a word was none. Errors: canceled, invalid (what came is wrong), timeout (it did not come),
  // gone (the client closed before), not_owner (another user's), io.
  Result<FirecrackerClient> take_client(std::uint64_t source_pages, Milliseconds patience,
                                        const CancelSignal& stop);

 private:
  FirecrackerSocket(std::string path, UniqueFd listener)
      : path_(std::move(path)), listener_(std::move(listener)) {}
  Result<UniqueFd> accept_one(const CancelSignal& stop) const;

  std::string path_;
  UniqueFd listener_;
};

}  // namespace pageferry
