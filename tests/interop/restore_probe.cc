// restore_probe: capture and restore as two commands, for tests and measurements of the restore
// alone.
//
//   restore_probe capture --qmp SOURCE --dir DIR
//       writes DIR/pages and DIR/state; the source ends in postmigrate
//   restore_probe restore --qmp DESTINATION --dir DIR --channel SOCKET [--order hot]
//                         [--placement auto|direct|stream] [--hold-before-cont MS]
//   restore_probe attach --qmp DESTINATION --dir DIR --channel SOCKET
//
// Every phase edge is a line "<name> <CLOCK_MONOTONIC in us>" on stdout, statistics are a line of
// JSON. Exit 1 with one line on stderr on any error.
#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "pager/page_file_reader.h"
#include "pager/page_file_writer.h"
#include "tools/pageferry/option_names.h"
#include "transport/aio_file.h"
#include "vmstate/device_state.h"
#include "vmstate/qemu_capture.h"
#include "vmstate/qemu_restore.h"
#include "vmstate/qmp_client.h"

namespace pageferry {
namespace {

constexpr Seconds kBound{120};
constexpr unsigned kReadQueueDepth = 64;

struct Arguments {
  std::string qmp;
  std::string directory;
  std::string channel;
  std::string order = "hot";
  std::string placement = "auto";
  std::uint64_t bandwidth_mib_s = 0;
  unsigned hold_before_cont_ms = 0;
};

const MonotonicClock kClock;

void edge(const char* name) {
  const auto now = std::chrono::duration_cast<std::chrono::microseconds>(kClock.now());
  fmt::print("{} {}\n", name, now.count());
  std::fflush(stdout);
}

Result<UniqueFd> open_directory(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return syscall_error("open", path);
  return fd;
}

Result<QemuState> read_state(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) return fail(Errc::not_found, path + ": " + error.message());
  std::vector<char> text(size);
  std::ifstream in(path, std::ios::binary);
  if (!in.read(text.data(), static_cast<std::streamsize>(size))) return fail(Errc::io, path);
  return decode_qemu_state(std::as_bytes(std::span(text)));
}

Result<std::unique_ptr<PageFileReader>> open_pages(const std::string& path) {
  PF_ASSIGN(const UniqueFd directory, open_directory(path));
  PF_ASSIGN(auto file,
            AioFile::open(directory.get(), "pages", path, {.queue_depth = kReadQueueDepth}));
  return PageFileReader::open(std::move(file), {}, kClock, {});
}

void print_stats(const QemuRestore& restore) {
  const RestoreStats s = restore.stats();
  fmt::print(
      "{{\"pages\":{},\"demand\":{},\"prefetched\":{},\"zero\":{},\"faults\":{},\"already-sent\":{}"
      ","
      "\"placement\":\"{}\",\"fault-p50-us\":{},\"fault-p99-us\":{},\"fault-max-us\":{}}}\n",
      s.pages_total, s.pages_demand, s.pages_prefetched, s.pages_zero, s.faults,
      s.faults_already_sent, name_of(kPlacementNames, s.placement), s.fault_p50_us, s.fault_p99_us,
      s.fault_max_us);
  std::fflush(stdout);
}

class SwitchesSoon final : public CaptureObserver {
 public:
  Verdict on_progress(const Progress&) override { return Verdict::go_on; }
  bool may_switch() override { return true; }
  Verdict on_not_converging(const Progress&) override { return Verdict::switch_now; }
};

Result<void> capture(const Arguments& arguments) {
  PF_ASSIGN(const auto qmp, QmpClient::connect(arguments.qmp, Deadline::after(kClock, kBound)));
  PF_ASSIGN(const UniqueFd directory, open_directory(arguments.directory));
  PF_ASSIGN(auto file, AioFile::create(directory.get(), "pages", arguments.directory, {}));
  PF_ASSIGN(const auto ids, PageFileIds::random());
  PF_ASSIGN(const auto writer, PageFileWriter::make(std::move(file), ids, {}, kClock));
  SwitchesSoon observer;
  PF_ASSIGN(const auto capture, QemuCapture::create(*qmp, *writer, observer, {}));
  PF_TRY(capture->start());
  PF_TRY(capture->run_brownout());
  PF_TRY(capture->run_blackout());
  PF_TRY(writer->finish_and_commit());
  PF_TRY(capture->commit_source());
  const auto bytes = encode_qemu_state(capture->state());
  std::ofstream out(arguments.directory + "/state", std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
  if (!out.flush()) return fail(Errc::io, "state was not written");
  edge("captured");
  return {};
}

Result<std::unique_ptr<QemuRestore>> make_restore(const Arguments& arguments, QmpClient& qmp) {
  RestoreOptions options;
  options.channel_socket_path = arguments.channel;
  options.prefetch_bandwidth_bytes_per_s = arguments.bandwidth_mib_s << 20;
  options.order = find_named(kPrefetchOrderNames, arguments.order).value();
  options.placement = find_named(kPlacementNames, arguments.placement).value();
  return QemuRestore::create(qmp, options);
}

Result<void> finish(QemuRestore& restore) {
  const auto finished = restore.finish();
  print_stats(restore);
  if (!finished) return finished;
  edge("resident");
  return {};
}

Result<void> restore(const Arguments& arguments) {
  const Deadline deadline = Deadline::after(kClock, kBound);
  PF_ASSIGN(const auto qmp, QmpClient::connect(arguments.qmp, deadline));
  PF_ASSIGN(const QemuState state, read_state(arguments.directory + "/state"));
  PF_ASSIGN(const auto pages, open_pages(arguments.directory));
  PF_ASSIGN(const auto restore, make_restore(arguments, *qmp));
  PF_TRY(restore->prepare(state, deadline));
  edge("prepared");
  PF_TRY(restore->load_devices(state, *pages, deadline));
  edge("loaded");
  // In the product two durable records are written here.
  std::this_thread::sleep_for(Milliseconds(arguments.hold_before_cont_ms));
  edge("cont");
  PF_TRY(qmp->execute("cont", nlohmann::json::object(), deadline));
  edge("running");
  PF_TRY(restore->announce_self(deadline));
  return finish(*restore);
}

Result<void> attach(const Arguments& arguments) {
  const Deadline deadline = Deadline::after(kClock, kBound);
  PF_ASSIGN(const auto qmp, QmpClient::connect(arguments.qmp, deadline));
  PF_ASSIGN(const QemuState state, read_state(arguments.directory + "/state"));
  PF_ASSIGN(const auto pages, open_pages(arguments.directory));
  PF_ASSIGN(const auto restore, make_restore(arguments, *qmp));
  PF_TRY(restore->attach(state, *pages, deadline));
  edge("attached");
  return finish(*restore);
}

Result<void> run(const CLI::App& app, const Arguments& arguments) {
  if (app.got_subcommand("capture")) return capture(arguments);
  if (app.got_subcommand("attach")) return attach(arguments);
  return restore(arguments);
}

}  // namespace
}  // namespace pageferry

int main(int argc, char** argv) {
  pageferry::Arguments arguments;
  CLI::App app("Capture and restore of a QEMU guest, for tests of the restore");
  app.require_subcommand(1);
  for (const char* name : {"capture", "restore", "attach"}) {
    CLI::App* command = app.add_subcommand(name);
    command->add_option("--qmp", arguments.qmp)->required();
    command->add_option("--dir", arguments.directory)->required();
    if (std::string(name) == "capture") continue;
    command->add_option("--channel", arguments.channel)->required();
    command->add_option("--order", arguments.order)
        ->check(CLI::IsMember({"none", "linear", "hot"}));
    command->add_option("--placement", arguments.placement)
        ->check(CLI::IsMember({"auto", "direct", "stream"}));
    command->add_option("--bandwidth", arguments.bandwidth_mib_s,
                        "MiB/s of prefetch, 0 = no limit");
    command->add_option("--hold-before-cont", arguments.hold_before_cont_ms, "milliseconds");
  }
  CLI11_PARSE(app, argc, argv);
  const auto done = pageferry::run(app, arguments);
  if (done) return 0;
  fmt::print(stderr, "restore_probe: {}: {}\n", pageferry::errc_name(done.error().code),
             done.error().message);
  return 1;
}
