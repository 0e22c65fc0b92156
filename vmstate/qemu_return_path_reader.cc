// recv without blocking, poll only in next().
#include "vmstate/qemu_return_path_reader.h"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <iterator>

namespace pageferry {
namespace {

constexpr std::size_t kReadBytes = std::size_t{64} << 10;
constexpr int kReadsPerCallMax = 16;  // then the loop does other work; the rest is still there

}  // namespace

Result<QemuReturnPathReader::State> QemuReturnPathReader::read_available(
    std::vector<qemu_stream::ReturnPathMessage>& messages) {
  messages.insert(messages.end(), std::make_move_iterator(waiting_.begin()),
                  std::make_move_iterator(waiting_.end()));
  waiting_.clear();
  std::array<std::byte, kReadBytes> buffer;
  for (int i = 0; i < kReadsPerCallMax; ++i) {
    const ssize_t got = ::recv(fd_, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got == 0) return State::closed;
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) break;
      if (errno == ECONNRESET) return State::closed;
      return syscall_error("recv", "return path of the destination QEMU");
    }
    PF_TRY(decoder_.feed(std::span(buffer).first(static_cast<std::size_t>(got)), messages));
    if (static_cast<std::size_t>(got) < buffer.size()) break;
  }
  return State::open;
}

Result<qemu_stream::ReturnPathMessage> QemuReturnPathReader::next(Deadline deadline) {
  for (;;) {
    if (!waiting_.empty()) {
      Result<qemu_stream::ReturnPathMessage> message(std::move(waiting_.front()));
      waiting_.pop_front();
      return message;
    }
    std::vector<qemu_stream::ReturnPathMessage> messages;
    PF_ASSIGN(const State state, read_available(messages));
    waiting_.assign(std::make_move_iterator(messages.begin()),
                    std::make_move_iterator(messages.end()));
    if (!waiting_.empty()) continue;
    if (state == State::closed) {
      return fail(Errc::gone, "the destination QEMU closed the page channel");
    }
    if (deadline.passed()) {
      return fail(Errc::timeout, "the destination QEMU did not answer on the return path in time");
    }
    pollfd entry{.fd = fd_, .events = POLLIN, .revents = 0};
    if (::poll(&entry, 1, deadline.poll_timeout_ms()) < 0 && errno != EINTR) {
      return syscall_error("poll", "return path of the destination QEMU");
    }
  }
}

}  // namespace pageferry
