// receive --firecracker: the page-fault handler behind Firecracker's memory backend `Uffd` (docs/firecracker.md). Claims nothing and writes
// no record: who may run the guest is Firecracker's user's affair.
#include <fmt/format.h>

#include <utility>

#include "tools/pageferry/commands.h"
#include "tools/pageferry/mebibytes.h"
#include "tools/pageferry/memory_source.h"
#include "tools/pageferry/reporter.h"
#include "tools/pageferry/stop_on_signals.h"
#include "vmstate/firecracker_service.h"
#include "vmstate/firecracker_socket.h"

namespace pageferry {
namespace {

constexpr Seconds kServiceOpenBound{120};
constexpr Milliseconds kMessagePatience{
    5000};  // Firecracker sends its message as soon as it is connected

nlohmann::json to_json(const UserfaultPageInFigures& figures) {
  const std::uint64_t sent = figures.pages_demand + figures.pages_prefetched;
  const double asked = static_cast<double>(figures.faults + figures.faults_already_sent);
  nlohmann::json json;
  json["ram"] = {{"total", bytes_of_pages(figures.pages_total)},
                 {"transferred", bytes_of_pages(sent)},
                 {"remaining", bytes_of_pages(figures.pages_total - sent)},
                 {"duplicate", figures.pages_zero},
                 {"page-size", kPageSizeBytes}};
  json["faults"] = {{"count", figures.faults},
                    {"p50-us", figures.fault_p50_us},
                    {"p99-us", figures.fault_p99_us},
                    {"max-us", figures.fault_max_us}};
  json["prefetch"] = {{"pages", figures.pages_prefetched},
                      {"hit-rate", sent == 0 ? 0.0 : 1.0 - asked / static_cast<double>(sent)}};
  json["balloon"] = {{"removed-pages", figures.pages_removed},
                     {"zero-faults", figures.removed_faults}};
  if (figures.resident_after) json["time-to-resident"] = to_ms(*figures.resident_after);
  return json;
}

// Once somebody waits for pages that this program has promised.
ExitCode code_while_serving(const Error& error) {
  return error.code == Errc::corrupt ? ExitCode::state_lost : ExitCode::recoverable;
}

ExitCode serve(FirecrackerClient client, PageSupply& source, const FirecrackerCommand& command,
               const CancelSignal& stop, Reporter& reporter, const Clock& clock) {
  nlohmann::json result;
  result["client"] = {{"pid", client.pid}, {"regions", client.regions.addresses.size()}};
  reporter.note(fmt::format("Firecracker, process {}: {} MiB in {} regions", client.pid,
                            client.regions.layout.bytes() / kBytesPerMib,
                            client.regions.addresses.size()));
  reporter.phase("restore");
  auto service = FirecrackerService::start(std::move(client), source, command.order, clock);
  if (!service) {
    reporter.error(service.error());
    reporter.finish(std::move(result), ExitCode::refused);
    return ExitCode::refused;
  }
  const char* phase = "restore";
  auto served = (*service)->serve(stop, [&](const UserfaultPageInFigures& figures) {
    if (figures.resident_after && std::exchange(phase, "resident") != std::string_view("resident"))
      reporter.phase(phase);
    reporter.progress(phase, to_json(figures));
  });
  if (!served) reporter.error(served.error());
  const ExitCode code = served ? ExitCode::done : code_while_serving(served.error());
  result.update(to_json((*service)->figures()));
  reporter.finish(std::move(result), code);
  return code;
}

// The socket is there only while somebody is waited for.
Result<FirecrackerClient> await_client(const FirecrackerCommand& command, std::uint64_t pages,
                                       const CancelSignal& stop, Reporter& reporter) {
  PF_ASSIGN(FirecrackerSocket socket, FirecrackerSocket::listen(command.socket));
  reporter.phase("listen");
  return socket.take_client(pages, kMessagePatience, stop);
}

}  // namespace

ExitCode run_firecracker(const FirecrackerCommand& command, const Clock& clock) {
  Reporter reporter(command.common.style, command.common.verbosity, clock);
  CancelSignal stop;
  const StopOnSignals on_signals(stop);
  const auto refuse = [&](const Error& error) {
    reporter.error(error);
    const ExitCode code = error.code == Errc::canceled ? ExitCode::aborted : ExitCode::refused;
    reporter.finish(nlohmann::json::object(), code);
    return code;
  };
  const WaitBounds bounds{&stop, Deadline::after(clock, kServiceOpenBound)};
  reporter.phase("open");
  auto source =
      open_memory_source(command.file, command.kind, command.common.store_faults, clock, bounds);
  if (!source) return refuse(source.error());
  auto client = await_client(command, (*source)->layout().pages(), stop, reporter);
  if (!client) return refuse(client.error());
  return serve(std::move(*client), **source, command, stop, reporter, clock);
}

}  // namespace pageferry
