// FakeSourceQemu: a QmpClient behind which a small source QEMU behaves as the real one does in a migration: capabilities and parameters,
// run state, the stream over the descriptor it was given, return path, events. A test changes what it needs before the capture starts.
//
// Thread rule: internally locked; the stream runs on a thread of its own. Lifetime: ends its thread in the destructor.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fakes/source_stream.h"
#include "transport/os/fd.h"
#include "vmstate/qmp_client.h"

namespace pageferry::fakes {

class FakeSourceQemu final : public QmpClient {
 public:
  using json = nlohmann::json;

  // What it has and does; set before the capture starts.
  std::map<std::string, bool> capabilities = {
      {"return-path", false},   {"events", false}, {"pause-before-switchover", false},
      {"multifd", false},       {"xbzrle", false}, {"auto-converge", true},
      {"switchover-ack", false}};
  json parameters = {{"max-bandwidth", 134217728},
                     {"downtime-limit", 300},
                     {"avail-switchover-bandwidth", 0},
                     {"tls-creds", ""}};
  json migration = json::object();  // query-migrate
  std::string run_state = "running";
  SourceStream::Blocks blocks = {{"pc.ram", 4 * kPageSizeBytes}, {"rom", 2 * kPageSizeBytes}};
  std::function<void(SourceStream&)> setup;  // instead of the ordinary one
  std::function<void(FakeSourceQemu&)>
      brownout;  // on the stream's thread, after pass 1; before the guest is stopped
  bool suppresses_description = false;  // the machine option; only the answer to qom-get
  bool ignores_acknowledgement = false;
  std::string captured_run_state = "running";
  bool stays_in_device = false;  // sends the RAM END, then nothing more

  ~FakeSourceQemu() override {
    {
      const std::lock_guard lock(mutex_);
      leaving_ = true;
      changed_.notify_all();
      if (stream_.valid()) ::shutdown(stream_.get(), SHUT_RDWR);
    }
    if (thread_.joinable()) thread_.join();
  }

  // --- QmpClient ---
  Result<json> execute(std::string_view command, json arguments, Deadline) override {
    std::unique_lock lock(mutex_);
    commands_.emplace_back(command);
    if (const auto refused = refusals.find(std::string(command)); refused != refusals.end()) {
      return fail(Errc::vmm, refused->second);
    }
    if (command == "query-status")
      return json{{"status", run_state}, {"running", run_state == "running"}};
    if (command == "query-migrate") return migration;
    if (command == "query-migrate-capabilities") return capability_list();
    if (command == "migrate-set-capabilities") return set_capabilities(arguments);
    if (command == "query-migrate-parameters") return parameters;
    if (command == "migrate-set-parameters") {
      parameters.update(arguments);
      return json::object();
    }
    if (command == "qom-get") return json(suppresses_description);
    if (command == "human-monitor-command") return ram_blocks_text();
    if (command == "migrate-continue") {
      continued_ = true;
      changed_.notify_all();
    }
    if (command == "migrate_cancel") {
      if (stream_.valid()) ::shutdown(stream_.get(), SHUT_RDWR);
      canceled_ = true;
      changed_.notify_all();
    }
    if (command == "migrate") {
      set_status("setup");
      thread_ = std::thread([this] { run(); });
    }
    return json::object();
  }
  Result<json> execute_with_fd(std::string_view command, json, int fd, Deadline) override {
    const std::lock_guard lock(mutex_);
    commands_.emplace_back(command);
    stream_.reset(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    return json::object();
  }
  Result<std::optional<json>> wait_event(Deadline deadline) override {
    std::unique_lock lock(mutex_);
    const int wait_ms = deadline.poll_timeout_ms();
    const auto ready = [&] { return !events_.empty(); };
    if (wait_ms < 0) {
      changed_.wait(lock, ready);
    } else {
      changed_.wait_for(lock, Milliseconds(wait_ms), ready);
    }
    if (events_.empty()) return std::optional<json>();
    std::optional<json> event = std::move(events_.front());
    events_.pop_front();
    return event;
  }
  bool unbroken() const override { return true; }
  Peer peer() const override { return {}; }
  const std::string& socket_path() const override { return path_; }
  int qemu_version() const override { return 100000; }

  // --- for tests and the brownout function ---
  std::map<std::string, std::string> refusals;  // command -> QEMU's words
  void event(const std::string& name, json data = json::object()) {
    const std::lock_guard lock(mutex_);
    push_event(name, std::move(data));
  }
  void set_run_state(const std::string& state) {
    const std::lock_guard lock(mutex_);
    run_state = state;
  }
  std::vector<std::string> commands() {
    const std::lock_guard lock(mutex_);
    return commands_;
  }
  bool was_asked(const std::string& command) {
    const auto all = commands();
    return std::find(all.begin(), all.end(), command) != all.end();
  }
  std::map<std::string, bool> capabilities_now() {
    const std::lock_guard lock(mutex_);
    return capabilities;
  }
  json parameters_now() {
    const std::lock_guard lock(mutex_);
    return parameters;
  }
  std::string run_state_now() {
    const std::lock_guard lock(mutex_);
    return run_state;
  }
  bool send(const ByteBuffer& bytes) {
    std::size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t n =
          ::send(stream_.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return false;
      sent += static_cast<std::size_t>(n);
    }
    return true;
  }
  // The next message of the return path that is no PONG: its type, or 0 at the end.
  unsigned next_message() {
    while (true) {
      std::array<std::byte, 4> head{};
      if (::recv(stream_.get(), head.data(), head.size(), MSG_WAITALL) != 4) return 0;
      const auto type = get_be<std::uint16_t>(head);
      const auto length = get_be<std::uint16_t>(std::span(head).subspan(2));
      std::array<std::byte, 4> payload{};
      if (length > payload.size()) return 0;
      if (length > 0 && ::recv(stream_.get(), payload.data(), length, MSG_WAITALL) != length) {
        return 0;
      }
      if (type != static_cast<unsigned>(qemu_stream::ReturnPathType::pong)) return type;
      ++pongs;
    }
  }
  // Blocks until the capture was told to go or is gone.
  void wait_for_cancel() {
    pollfd gone{.fd = stream_.get(), .events = POLLRDHUP, .revents = 0};
    ::poll(&gone, 1, -1);
  }
  int pongs = 0;

 private:
  json capability_list() const {
    json list = json::array();
    for (const auto& [name, on] : capabilities)
      list.push_back({{"capability", name}, {"state", on}});
    return list;
  }
  json set_capabilities(const json& arguments) {
    for (const json& entry : arguments["capabilities"])
      capabilities[entry["capability"]] = entry["state"];
    return json::object();
  }
  json ram_blocks_text() const {
    std::string text =
        "              Block Name    PSize              Offset               Used              "
        "Total\r\n";
    for (const auto& [name, length] : blocks) {
      char line[160];
      std::snprintf(line, sizeof line, "%24s    4 KiB  0x%016x 0x%016lx 0x%016lx\r\n", name.c_str(),
                    0, length, length);
      text += line;
    }
    return text;
  }
  void push_event(const std::string& name, json data) {
    events_.push_back({{"event", name}, {"data", std::move(data)}});
    changed_.notify_all();
  }
  void set_status(const std::string& status) {
    migration["status"] = status;
    if (capabilities["events"]) push_event("MIGRATION", {{"status", status}});
  }
  void status(const std::string& status) {
    const std::lock_guard lock(mutex_);
    set_status(status);
  }

  void run() {
    const bool was_running = run_state_now() == "running";
    const bool completed = migrate(was_running);
    const std::lock_guard lock(mutex_);
    if (completed) {
      run_state = "postmigrate";
      set_status("completed");
      return;
    }
    if (was_running && (run_state == "finish-migrate")) {
      run_state = "running";
      push_event("RESUME", {});
    }
    if (run_state == "finish-migrate") run_state = "paused";
    if (!leaving_) set_status(canceled_ ? "cancelled" : "failed");
    stream_.reset();
  }

  // True: SHUT(0) was heard after the last byte.
  bool migrate(bool was_running) {
    status("active");
    SourceStream stream;
    if (setup) {
      setup(stream);
    } else {
      stream.setup(blocks);
      stream.part().page("pc.ram", 0, 1).page("", 0x1000, 2).zero("", 0x2000).eos().footer();
    }
    event("MIGRATION_PASS", {{"pass", 1}});
    if (!send(stream.take())) return false;
    event("MIGRATION_PASS", {{"pass", 2}});
    if (brownout) brownout(*this);
    constexpr auto kAck = static_cast<unsigned>(qemu_stream::ReturnPathType::switchover_ack);
    if (was_running && !ignores_acknowledgement && capabilities_now()["switchover-ack"] &&
        next_message() != kAck)
      return false;
    {
      const std::lock_guard lock(mutex_);
      if (canceled_) return false;
      if (was_running) push_event("STOP", {});
      run_state = "finish-migrate";
      set_status("pre-switchover");
    }
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return continued_ || canceled_ || leaving_ || peer_gone(); });
      if (!continued_) return false;
      set_status("device");
    }
    stream.end().page("pc.ram", 0x1000, 5).eos().footer();
    if (stays_in_device) {
      if (send(stream.take())) wait_for_cancel();
      return false;
    }
    stream.devices(was_running ? captured_run_state : "paused");
    if (!send(stream.take())) return false;
    std::array<std::byte, 8> shut{};
    while (true) {
      if (::recv(stream_.get(), shut.data(), shut.size(), MSG_WAITALL) != 8) return false;
      if (shut[1] != std::byte{2}) break;  // PONGs have the same length
    }
    return shut[1] == std::byte{1} && shut[7] == std::byte{0};
  }
  // In pre-switchover QEMU does not read; it is migrate_cancel or a later error that ends the wait.
  static bool peer_gone() { return false; }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<json> events_;
  std::vector<std::string> commands_;
  bool continued_ = false;
  bool canceled_ = false;
  bool leaving_ = false;
  UniqueFd stream_;
  std::string path_ = "fake";
  std::thread thread_;
};

}  // namespace pageferry::fakes
