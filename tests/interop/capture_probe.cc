// capture_probe: captures a guest of tests/guest once and prints what it took, as one JSON line.
//
//   capture_probe --qemu 10 --memory 2048 --fill 1433 --dirty 50 --ws 256 --sink null|raw|file
//
// `raw` reads QEMU's stream and throws it away unparsed: what QEMU itself can deliver. `null`: the
// capture engine with a sink that keeps nothing. `file`: into a page file in --store. Their ratios
// are what reading, parsing and storing cost. Compare medians of interleaved runs.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <thread>

#include "interop/qemu_under_test.h"
#include "pager/page_file_writer.h"
#include "transport/aio_file.h"
#include "vmstate/capture_channel.h"
#include "vmstate/qemu_capture.h"
#include "vmstate/qemu_return_path.h"
#include "vmstate/qmp_fields.h"

namespace pageferry {
namespace {

using nlohmann::json;
using testing_support::QemuSetup;
using testing_support::QemuUnderTest;

class NullSink final : public PageSink {
 public:
  Result<void> begin(const MemoryLayout&) override { return {}; }
  void begin_pass(std::uint32_t) override {}
  Result<void> begin_blackout() override { return {}; }
  Result<void> put_page(PageIndex, PageBytes bytes) override {
    sum_ += std::to_integer<unsigned>(bytes[0]);
    return {};
  }
  Result<void> put_zero(PageIndex) override { return {}; }

 private:
  std::uint64_t sum_ = 0;
};

class Observer final : public CaptureObserver {
 public:
  explicit Observer(double hold_s)
      : hold_until_(clock_.now() + Nanoseconds(static_cast<std::int64_t>(hold_s * 1e9))) {}
  Verdict on_progress(const Progress& p) override {
    std::fprintf(stderr, "%s remaining %lu MiB pass %lu dirty %lu p/s bw %lu MiB/s\n",
                 p.status.c_str(), p.ram_remaining_bytes >> 20, p.dirty_sync_count,
                 p.dirty_pages_per_s, p.bandwidth_bytes_per_s >> 20);
    return Verdict::go_on;
  }
  bool may_switch() override { return clock_.now() >= hold_until_; }
  Verdict on_not_converging(const Progress&) override {
    std::fprintf(stderr, "not converging\n");
    return Verdict::switch_now;
  }

 private:
  MonotonicClock clock_;
  Nanoseconds hold_until_;
};

// Where the pages go. `file`: the same sink once more, where it is a page file that must be committed.
struct Target {
  std::unique_ptr<PageSink> sink;
  PageFileWriter* file = nullptr;
};

Result<Target> make_target(const std::string& store, const Clock& clock) {
  if (store.empty()) return Target{.sink = std::make_unique<NullSink>(), .file = nullptr};
  const UniqueFd directory(::open(store.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return syscall_error("open", store);
  const std::string name = "capture_probe." + std::to_string(::getpid());
  PF_ASSIGN(std::unique_ptr<StorageFile> pages,
            AioFile::create(directory.get(), name, store, AioOptions{}));
  ::unlinkat(directory.get(), name.c_str(), 0);
  PF_ASSIGN(const PageFileIds ids, PageFileIds::random());
  PF_ASSIGN(auto writer, PageFileWriter::make(std::move(pages), ids, {}, clock));
  PageFileWriter* file = writer.get();
  return Target{.sink = std::move(writer), .file = file};
}

double ms(Nanoseconds time) {
  return static_cast<double>(time.count()) / 1e6;
}

int run_capture(QemuUnderTest& qemu, double hold_s, Milliseconds max_downtime,
                const std::string& store) {
  MonotonicClock clock;
  auto target = make_target(store, clock);
  if (!target) {
    std::fprintf(stderr, "%s\n", target.error().message.c_str());
    return 1;
  }
  Observer observer(hold_s);
  auto capture =
      QemuCapture::create(qemu.qmp(), *target->sink, observer, {.max_downtime = max_downtime});
  const Nanoseconds begun = clock.now();
  const auto step = [&](const char* name, Result<void> result) {
    if (!result) std::fprintf(stderr, "%s: %s\n", name, result.error().message.c_str());
    return result.has_value();
  };
  if (!step("start", (*capture)->start()) || !step("brownout", (*capture)->run_brownout()) ||
      !step("blackout", (*capture)->run_blackout())) {
    step("abort", (*capture)->abort());
    return 1;
  }
  const Nanoseconds complete = clock.now();
  if (target->file != nullptr) {
    auto durable = target->file->finish_and_commit();
    if (!durable) std::fprintf(stderr, "page file: %s\n", durable.error().message.c_str());
  }
  const Nanoseconds durable_at = clock.now();
  if (!step("commit", (*capture)->commit_source())) return 1;
  const Nanoseconds done = clock.now();
  const CaptureStats stats = (*capture)->stats();
  const json result = {{"total-ms", ms(done - begun)},
                       {"brownout-ms", ms(stats.stopped_at - begun)},
                       {"continue-after-stop-ms", ms(stats.continued_at - stats.stopped_at)},
                       {"ram-after-stop-ms", ms(stats.ram_complete_at - stats.stopped_at)},
                       {"state-after-stop-ms", ms(stats.state_complete_at - stats.stopped_at)},
                       {"returned-after-state-ms", ms(complete - stats.state_complete_at)},
                       {"durable-ms", ms(durable_at - complete)},
                       {"commit-ms", ms(done - durable_at)},
                       {"stop-to-completed-ms", ms(done - stats.stopped_at)},
                       {"passes", stats.passes},
                       {"pages", stats.pages_stored},
                       {"zero-pages", stats.pages_zero},
                       {"blackout-pages", stats.blackout_pages},
                       {"bytes", stats.bytes_received},
                       {"working-ms", ms(stats.sink_time)}};
  std::printf("%s\n", result.dump().c_str());
  return 0;
}

// The whole stream to nowhere: QEMU's own speed. The guest is stopped, so that there is one pass.
int run_raw(QemuUnderTest& qemu) {
  MonotonicClock clock;
  auto channel = CaptureChannel::create();
  const auto deadline = Deadline::after(clock, Seconds(60));
  auto given =
      qemu.qmp().execute_with_fd("getfd", {{"fdname", "raw"}}, (*channel)->vmm_end(), deadline);
  (*channel)->close_vmm_end();
  auto set = qemu.qmp().execute("migrate-set-parameters",
                                {{"max-bandwidth", std::uint64_t{1} << 40}}, deadline);
  const Nanoseconds begun = clock.now();
  std::uint64_t bytes = 0;
  std::thread reader([&] {
    std::vector<std::byte> buffer(1 << 20);
    while (true) {
      auto got = (*channel)->receive(buffer);
      if (!got || *got == 0) return;
      bytes += *got;
    }
  });
  auto migrate = qemu.qmp().execute("migrate", {{"uri", "fd:raw"}}, deadline);
  reader.join();
  const Nanoseconds done = clock.now();
  std::printf("%s\n", json({{"raw-ms", ms(done - begun)}, {"bytes", bytes}}).dump().c_str());
  return given && set && migrate ? 0 : 1;
}

int run(int argc, char** argv) {
  CLI::App app("captures a guest once and prints what it took");
  QemuSetup setup;
  std::string sink = "null";
  std::string store = "/var/tmp";
  double hold_s = 0;
  int max_downtime_ms = 300;
  bool stopped = false;
  app.add_option("--qemu", setup.version)->check(CLI::IsMember({"10", "7.2"}));
  app.add_option("--memory", setup.memory_mib);
  app.add_option("--fill", setup.fill_mib);
  app.add_option("--dirty", setup.dirty_mib_s);
  app.add_option("--ws", setup.dirty_ws_mib);
  app.add_option("--sink", sink)->check(CLI::IsMember({"null", "raw", "file"}));
  app.add_option("--store", store);
  app.add_option("--hold", hold_s);
  app.add_option("--max-downtime", max_downtime_ms);
  app.add_flag("--stopped", stopped);
  CLI11_PARSE(app, argc, argv);
  MonotonicClock clock;
  QemuUnderTest qemu(setup);
  if (!qemu.wait_for_serial("PF-READY", 0, Seconds(300))) {
    std::fprintf(stderr, "the guest did not get ready: %s\n", qemu.serial().c_str());
    return 1;
  }
  if (stopped)
    static_cast<void>(
        qemu.qmp().execute("stop", json::object(), Deadline::after(clock, Seconds(10))));
  return sink == "raw" ? run_raw(qemu)
                       : run_capture(qemu, hold_s, Milliseconds(max_downtime_ms),
                                     sink == "file" ? store : "");
}

}  // namespace
}  // namespace pageferry

int main(int argc, char** argv) {
  return pageferry::run(argc, argv);
}
