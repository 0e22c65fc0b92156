// ControlServer: what a running tool listens to: its control socket (`pageferry status`, `pageferry
// abort`) and Ctrl-C / SIGTERM. QMP serves one client at a time and we are it, so others ask us
// instead.
//
// One thread of its own; one JSON request a connection ({"command":"status"} or
// {"command":"abort"}), one JSON reply, bounded in size and time, so that a silent client hurts
// nobody. The socket is 0600; only root and the same user get an answer (SO_PEERCRED).
//
// Thread rule: construct and destroy on one thread; set_status() from any.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

class ControlServer {
 public:
  // Asked by the control thread when a user wants to stop; returns a line that says what happened.
  // Must not block.
  using AbortHandler = std::function<Result<std::string>()>;

  // Blocks SIGINT and SIGTERM for the process's threads started later and takes them here. An old
  // socket file at the path is replaced: the caller holds the VM's lock, so nobody lives behind it.
  // The directory must exist.
  static Result<std::unique_ptr<ControlServer>> start(std::string socket_path,
                                                      AbortHandler on_abort);
  ~ControlServer();  // joins the thread, removes the socket file

  void set_status(nlohmann::json status);

 private:
  ControlServer(std::string path, AbortHandler on_abort)
      : path_(std::move(path)), on_abort_(std::move(on_abort)) {}
  void run();
  void serve_one();
  void take_signal();
  nlohmann::json reply_to(const nlohmann::json& request);

  std::string path_;
  AbortHandler on_abort_;
  UniqueFd listener_;
  UniqueFd signals_;
  UniqueFd stop_event_;
  std::mutex mutex_;
  nlohmann::json status_;  // under mutex_
  std::thread thread_;
};

// The client side: one request, one reply. Errors: not_found/gone (no tool runs), timeout, invalid
// (bad reply).
Result<nlohmann::json> ask_control_server(const std::string& socket_path,
                                          const nlohmann::json& request);

}  // namespace pageferry
