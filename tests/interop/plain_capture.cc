// Parses the stream as it comes; nothing is tuned.
#include "interop/plain_capture.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "transport/os/clock.h"
#include "transport/os/fd.h"
#include "vmstate/qemu_return_path.h"
#include "vmstate/qemu_stream_parser.h"

namespace pageferry::testing_support {
namespace {

using nlohmann::json;

constexpr std::size_t kReceiveBytes = std::size_t{1} << 20;

class PassCounter final : public PageSink, public qemu_stream::StreamEvents {
 public:
  explicit PassCounter(PageSink& sink) : sink_(&sink) {}

  Result<void> on_ping(std::uint32_t) override { return {}; }
  Result<void> on_setup_complete(const QemuState& state) override {
    return sink_->begin(state.layout);
  }
  void on_ram_end() override {}

  Result<void> begin(const MemoryLayout& layout) override { return sink_->begin(layout); }
  void begin_pass(std::uint32_t) override {}
  Result<void> begin_blackout() override { return {}; }
  Result<void> put_page(PageIndex page, PageBytes bytes) override {
    note(page);
    return sink_->put_page(page, bytes);
  }
  Result<void> put_zero(PageIndex page) override {
    note(page);
    return sink_->put_zero(page);
  }

 private:
  void note(PageIndex page) {
    if (raw(page) < last_) sink_->begin_pass(++pass_);
    last_ = raw(page);
  }
  PageSink* sink_;
  std::uint32_t pass_ = 1;
  std::uint64_t last_ = 0;
};

Result<void> start_migration(QmpClient& source, int fd, Deadline deadline) {
  const json capabilities = json::array({{{"capability", "events"}, {"state", true}},
                                         {{"capability", "return-path"}, {"state", true}}});
  PF_TRY(source.execute("migrate-set-capabilities", {{"capabilities", capabilities}}, deadline));
  PF_TRY(source.execute("migrate-set-parameters",
                        {{"max-bandwidth", std::int64_t{64} << 30}, {"downtime-limit", 30}},
                        deadline));
  PF_TRY(source.execute_with_fd("getfd", {{"fdname", "pages"}}, fd, deadline));
  PF_TRY(source.execute("migrate", {{"uri", "fd:pages"}}, deadline));
  return {};
}

Result<void> wait_completed(QmpClient& source, Deadline deadline) {
  for (;;) {
    PF_ASSIGN(const auto event, source.wait_event(deadline));
    if (!event) return fail(Errc::timeout, "the source did not complete");
    if ((*event)["event"] != "MIGRATION") continue;
    if ((*event)["data"]["status"] == "completed") return {};
    if ((*event)["data"]["status"] == "failed") return fail(Errc::vmm, "the source failed");
  }
}

}  // namespace

Result<QemuState> plain_capture(QmpClient& source, PageSink& sink) {
  const MonotonicClock clock;
  const Deadline deadline = Deadline::after(clock, Seconds(120));
  int pair[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
    return syscall_error("socketpair", "capture");
  }
  const UniqueFd ours(pair[0]);
  UniqueFd theirs(pair[1]);
  PF_TRY(start_migration(source, theirs.get(), deadline));
  theirs.reset();

  PassCounter passes(sink);
  qemu_stream::StreamParser parser(passes, passes);
  std::vector<std::byte> buffer(kReceiveBytes);
  std::size_t held = 0;
  while (!parser.complete()) {
    const ssize_t got = ::recv(ours.get(), buffer.data() + held, buffer.size() - held, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return syscall_error("recv", "migration stream");
    if (got == 0) return fail(Errc::gone, std::string(parser.position()));
    held += static_cast<std::size_t>(got);
    PF_ASSIGN(const std::size_t used, parser.parse(std::span(buffer).first(held)));
    std::memmove(buffer.data(), buffer.data() + used, held - used);
    held -= used;
  }
  ByteBuffer shut;
  qemu_stream::append_shut(shut, 0);
  if (::send(ours.get(), shut.data(), shut.size(), MSG_NOSIGNAL) < 0) {
    return syscall_error("send", "SHUT");
  }
  PF_TRY(wait_completed(source, deadline));
  return parser.state();
}

}  // namespace pageferry::testing_support
