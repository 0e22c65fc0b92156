// Sockets in the file system (unix(7)): making one that only this user reaches, who is at the other end, and the descriptors that come
// with a message.
//
// Thread rule: functions without state.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <string>
#include <string_view>
#include <vector>

#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

// Errors: invalid (empty, or longer than the kernel takes).
Result<sockaddr_un> local_address(const std::string& path);

// Listens, with mode 0600 from the first moment on; does not block. `type`: SOCK_STREAM or SOCK_SEQPACKET. A socket that nobody listens
// on is replaced. Errors: exists (somebody listens there, or it is no socket), invalid, io.
Result<UniqueFd> listen_at(const std::string& path, int type, int backlog);

// Errors: not_found (no socket, or nobody listens), not_owner (no permission), timeout, invalid, io.
Result<UniqueFd> connect_to(const std::string& path, int type, Deadline deadline);

// Who it is, as the kernel says: at the listening end, whoever called listen(2). Errors: io.
Result<ucred> peer_of(int connection, std::string_view who);
// The same, of somebody who may ask us. Errors: not_owner (neither this user nor root); `who` names the other end in it.
Result<ucred> check_peer(int connection, std::string_view who);

// What came with a message (SCM_RIGHTS). Whoever calls recvmsg(2) takes them out before it looks at anything else, or they stay open.
void take_descriptors(msghdr& message, std::vector<UniqueFd>& descriptors);

// A userfaultfd that does not block; else Errc::invalid. `whose` begins the line.
Result<void> check_userfault(std::string_view whose, const UniqueFd& descriptor);

}  // namespace pageferry
