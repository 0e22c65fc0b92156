// demo_vmm: parses the command line, makes the VM, lets the hook in, says how the guest is once a second, and ends when it is told to,
// when the guest has moved away, or when the guest cannot run on.
//
// Exit codes: 0 ended as asked or moved away and nothing was ever bad, 1 failed or the guest found something bad, 2 usage.
#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <exception>

#include "tools/demo_vmm/control_socket.h"
#include "tools/demo_vmm/options.h"
#include "tools/demo_vmm/status_json.h"

namespace pageferry::demo {
namespace {

constexpr Seconds kCheckBound{600};

// The newest one: a signal handler has no argument.
std::atomic<int> end_event{-1};
void ask_to_end(int /*signal*/) {
  ::eventfd_write(end_event, 1);
}

Result<void> replace_file(const std::string& path, const std::string& text) {
  const std::string next = path + ".next";
  const UniqueFd file(::open(next.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file.valid()) return syscall_error("open", next);
  if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return syscall_error("write", next);
  }
  if (::rename(next.c_str(), path.c_str()) != 0) return syscall_error("rename", path);
  return {};
}

class Program {
 public:
  explicit Program(const Options& options) : options_(options), end_(::eventfd(0, EFD_CLOEXEC)) {}

  Result<void> start() {
    end_event = end_.get();
    ::signal(SIGINT, ask_to_end);
    ::signal(SIGTERM, ask_to_end);
    ::signal(SIGPIPE, SIG_IGN);
    PF_ASSIGN(vm_, Vm::make(options_.vm));
    const bool is_incoming = options_.hook.beginning == Beginning::incoming;
    if (!is_incoming) vm_->boot();
    if (!options_.hook.socket_path.empty()) {
      PF_ASSIGN(glue_, HookGlue::start(*vm_, options_.hook, [this] { end(); }));
    }
    if (!options_.control_path.empty()) {
      const auto handler = [this](const nlohmann::json& request) { return reply_to(request); };
      PF_ASSIGN(control_, ControlSocket::start(options_.control_path, handler));
    }
    if (is_incoming) return {};
    return vm_->resume();
  }

  // Until the end. The exit code.
  int run() {
    for (;;) {
      pollfd waiting{end_.get(), POLLIN, 0};
      const int timeout_ms = static_cast<int>(options_.status_interval.count());
      const int told = ::poll(&waiting, 1, timeout_ms);
      if (told < 0) continue;  // a signal: its byte is in the event
      const VmStatus status = vm_->status();
      say(status);
      if (told > 0 || status.run_state == RunState::failed) {
        return status.report.bad == 0 && status.run_state != RunState::failed ? 0 : 1;
      }
    }
  }

  // Nothing of the guest may outlive the hook while pages are missing: then only the process ends, at once and as a whole.
  int finish(int exit_code) {
    if (vm_) vm_->end_checks();
    control_.reset();
    const Result<void> stopped = glue_ ? glue_->stop() : Result<void>();
    if (stopped) return exit_code;
    fmt::print(stderr, "demo_vmm: {}\n", stopped.error().message);
    std::fflush(nullptr);
    ::_exit(1);
  }

 private:
  void end() const { ::eventfd_write(end_.get(), 1); }

  nlohmann::json json_of(const VmStatus& status) const {
    return status_json(status, glue_ ? glue_->state_name() : "", dirty_mib_s_);
  }

  void say(const VmStatus& status) {
    const double pages = static_cast<double>(status.report.pages_written - last_written_);
    const double seconds = std::chrono::duration<double>(options_.status_interval).count();
    if (status.report.pages_written >= last_written_) dirty_mib_s_ = pages / 256 / seconds;
    last_written_ = status.report.pages_written;
    const std::string line = json_of(status).dump() + "\n";
    if (options_.status_lines == Options::StatusLines::on_stdout) {
      std::fputs(line.c_str(), stdout);
      std::fflush(stdout);
    }
    if (options_.status_file.empty()) return;
    if (const auto put = replace_file(options_.status_file, line); !put) {
      fmt::print(stderr, "demo_vmm: {}\n", put.error().message);
    }
  }

  Result<nlohmann::json> reply_to(const nlohmann::json& request) {
    const std::string type = request["type"];
    if (type == "status") return json_of(vm_->status());
    if (type == "check") {
      PF_ASSIGN(const VmStatus status, vm_->check_all(Deadline::after(clock_, kCheckBound)));
      return json_of(status);
    }
    if (type == "flip") return flip(request);
    if (type == "end") {
      end();
      return nlohmann::json{{"type", "ok"}};
    }
    return fail(Errc::invalid, fmt::format("unknown request '{}'", type));
  }

  Result<nlohmann::json> flip(const nlohmann::json& request) {
    const auto address = request.find("address");
    const auto bit = request.find("bit");
    const bool has_both = address != request.end() && address->is_number_unsigned() &&
                          bit != request.end() && bit->is_number_unsigned() && *bit < 8U;
    if (!has_both) return fail(Errc::invalid, "flip: 'address' and 'bit' (0 to 7) are needed");
    PF_TRY(vm_->flip(address->get<std::uint64_t>(), bit->get<unsigned>()));
    return nlohmann::json{{"type", "ok"}};
  }

  const Options options_;
  const MonotonicClock clock_;
  UniqueFd end_;
  std::unique_ptr<Vm> vm_;
  std::unique_ptr<HookGlue> glue_;
  std::unique_ptr<ControlSocket> control_;
  std::uint64_t last_written_ = 0;
  std::atomic<double> dirty_mib_s_ = 0;
};

int run_program(const Options& options) {
  Program program(options);
  const Result<void> started = program.start();
  if (!started) {
    fmt::print(stderr, "demo_vmm: {}\n", started.error().message);
    return program.finish(1);
  }
  return program.finish(program.run());
}

}  // namespace
}  // namespace pageferry::demo

int main(int argc, char** argv) {
  try {
    const auto options = pageferry::demo::parse_options(argc, argv);
    if (options) return pageferry::demo::run_program(*options);
    std::fputs(options.error().text.c_str(), options.error().exit_code == 0 ? stdout : stderr);
    return options.error().exit_code;
  } catch (const std::exception& error) {
    fmt::print(stderr, "demo_vmm: internal: {}\n", error.what());
    return 1;
  }
}
