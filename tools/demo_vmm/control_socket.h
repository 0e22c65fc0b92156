// ControlSocket: where tests and people talk to a demo VMM: one JSON object in, one out, a connection each. Not for moving it: that is the
// hook's, and nothing here can start or stop the guest.
//
//   {"type":"status"}                            status_json
//   {"type":"check"}                             the same, after the guest has checked all of its memory
//   {"type":"flip","address":N,"bit":0..7}       fault switch: flips one bit of guest memory
//   {"type":"end"}                               the VMM ends
//
// Thread rule: construct and destroy on one thread; the handler is called on a thread of its own, one request at a time.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry::demo {

class ControlSocket {
 public:
  using Handler = std::function<Result<nlohmann::json>(const nlohmann::json& request)>;

  // 0600; a file at the path that nobody listens on is replaced. Errors: as listen_at.
  static Result<std::unique_ptr<ControlSocket>> start(const std::string& path, Handler handler);
  ~ControlSocket();  // removes the file
  ControlSocket(const ControlSocket&) = delete;
  ControlSocket& operator=(const ControlSocket&) = delete;

 private:
  ControlSocket(std::string path, Handler handler);
  void run();
  void serve(UniqueFd client);

  std::string path_;
  Handler handler_;
  UniqueFd listener_;
  UniqueFd stop_event_;
  std::thread thread_;
};

}  // namespace pageferry::demo
