// QmpClient: one connection to a QEMU monitor (QMP, JSON lines over a unix socket; QEMU docs/interop/qmp-spec).
// QEMU serves one client at a time on a socket: while another holds it, no greeting comes, and connect() says so.
//
// Every event that arrives between replies is kept, in order, until taken. unbroken() is true as long as the connection has
// not been lost since connect(): only then is the event history complete.
//
// Thread rule: internally locked (execute may be called from several threads, one runs at a time; wait_event from one thread).
// Lifetime: owns its socket.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/qmp_commands.h"

namespace pageferry {

class QmpClient : public QmpCommands {
 public:
  // Connects, reads the greeting and negotiates capabilities. Errors: not_found / gone (no socket, nobody listens), busy (no
  // greeting before the deadline: another client holds the monitor), vmm (what answers is no QMP server), invalid (path too long).
  static Result<std::unique_ptr<QmpClient>> connect(const std::string& socket_path,
                                                    Deadline deadline);

  // execute() closes the connection after a timeout: a late reply could be taken for another's.
  // The same, passing a file descriptor along with the command (getfd). The caller keeps its own copy.
  virtual Result<nlohmann::json> execute_with_fd(std::string_view command, nlohmann::json arguments,
                                                 int fd, Deadline deadline) = 0;

  // The oldest event not yet taken ({"event":..., "data":..., "timestamp":...}); nullopt at the deadline; gone when the
  // connection ended and no event is left.
  virtual Result<std::optional<nlohmann::json>> wait_event(Deadline deadline) = 0;

  virtual bool unbroken() const = 0;
  // Process at the other end (SO_PEERCRED at connect time): pid, uid, gid.
  struct Peer {
    int pid = 0;
    unsigned uid = 0;
    unsigned gid = 0;
  };
  virtual Peer peer() const = 0;
  virtual const std::string& socket_path() const = 0;
  // QEMU's version from the greeting: major * 10000 + minor * 100 + micro.
  virtual int qemu_version() const = 0;
};

}  // namespace pageferry
