// pageferry: parses the command line, runs one command, and exits with the code that says where the
// guest is.
#include <fmt/format.h>
#include <signal.h>

#include <cstdio>
#include <exception>

#include "tools/pageferry/agent.h"
#include "tools/pageferry/commands.h"
#include "tools/pageferry/options.h"

namespace pageferry {
namespace {

template <typename... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};
template <typename... Ts>
Overloaded(Ts...) -> Overloaded<Ts...>;

ExitCode run(const Command& command) {
  const MonotonicClock clock;
  return std::visit(
      Overloaded{[&](const MigrateCommand& c) { return run_migrate(c, clock); },
                 [&](const SendCommand& c) { return run_send(c, clock); },
                 [&](const ReceiveCommand& c) { return run_receive(c, clock); },
                 [&](const AgentCommand& c) { return run_agent(c, clock); },
                 [&](const StatusCommand& c) { return run_status(c, clock); },
                 [&](const AbortCommand& c) { return run_abort(c, clock); },
                 [&](const FirecrackerCommand& c) { return run_firecracker(c, clock); },
                 [&](const RecoverCommand& c) { return run_recover(c, clock); },
                 [&](const InspectCommand& c) { return run_inspect(c, clock); },
                 [&](const CheckCommand& c) { return run_check(c, clock); }},
      command);
}

}  // namespace
}  // namespace pageferry

int main(int argc, char** argv) {
  // A peer that goes away is an error value, not a signal.
  ::signal(SIGPIPE, SIG_IGN);
  try {
    const auto command = pageferry::parse_command_line(argc, argv);
    if (!command) {
      const auto& answer = command.error();
      std::fputs(answer.text.c_str(), answer.code == pageferry::ExitCode::done ? stdout : stderr);
      return static_cast<int>(answer.code);
    }
    return static_cast<int>(pageferry::run(*command));
  } catch (const std::exception& error) {
    // No exception leaves a folder; this is what remains, out of memory for one. Whoever runs the
    // guest stands in the records.
    fmt::print(stderr, "pageferry: internal: {}\n", error.what());
    return static_cast<int>(pageferry::ExitCode::recoverable);
  }
}
