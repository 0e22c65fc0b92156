// Sockets and batches. A batch is up to kPrefetchRunPagesMax records as an iovec; sendmsg may take
// any part of it. Records taken whole are gone; the cut one's rest is copied (at most one page) and
// counts as gone; those after it stay with the caller.
//
// On the main channel page records live inside a PART section: one is opened before the first page
// and closed by end_pages(). Control records are only written before it.
#include "vmstate/qemu_page_channels.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "vmstate/qemu_stream_format.h"

namespace pageferry {
namespace {

// A destination reads 32 KiB at a time. The kernel doubles the value and counts its own overhead in
// it; at a quarter full it reports room again.
constexpr int kMainSendBufferBytes = 256 * 1024;
constexpr int kUrgentSendBufferBytes = 256 * 1024;

Result<UniqueFd> connect_channel(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return fail(Errc::invalid, fmt::format("page channel socket '{}' has {} bytes, limit 1..{}",
                                           path, path.size(), sizeof address.sun_path - 1));
  }
  std::copy(path.begin(), path.end(), std::begin(address.sun_path));
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return syscall_error("socket", path);
  while (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno != EINTR) return syscall_error("connect", path);
  }
  return fd;
}

}  // namespace

struct QemuPageChannels::Batch {
  static constexpr std::size_t kRecordsMax = kPrefetchRunPagesMax;
  std::array<iovec, 2 * kRecordsMax> pieces{};
  std::size_t piece_count = 0;
  std::size_t record_count = 0;
  std::size_t pieces_per_record = 1;

  void add(std::span<const std::byte> bytes) {
    pieces[piece_count++] = {.iov_base = const_cast<std::byte*>(bytes.data()),
                             .iov_len = bytes.size()};
  }
};

Result<QemuPageChannels> QemuPageChannels::connect(const std::string& socket_path,
                                                   const MemoryLayout& layout) {
  PF_ASSIGN(UniqueFd fd, connect_channel(socket_path));
  return QemuPageChannels(std::move(fd), socket_path, layout);
}

Result<void> QemuPageChannels::connect_urgent() {
  PF_ASSIGN(urgent_.fd, connect_channel(path_));
  return {};
}

Result<void> QemuPageChannels::write(std::span<const std::byte> bytes, Deadline deadline) {
  PF_CHECK(!part_open_);
  while (!bytes.empty()) {
    const ssize_t sent = ::send(main_fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(sent));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return syscall_error("send", path_);
    pollfd entry{.fd = main_fd(), .events = POLLOUT, .revents = 0};
    const int ready = ::poll(&entry, 1, deadline.poll_timeout_ms());
    if (ready < 0 && errno != EINTR) return syscall_error("poll", path_);
    if (deadline.passed()) {
      return fail(
          Errc::timeout,
          fmt::format("the destination QEMU took no more of the stream on {}; {} bytes left", path_,
                      bytes.size()));
    }
  }
  return {};
}

Result<void> QemuPageChannels::begin_pages() {
  const auto bound = [this](int fd, int bytes) -> Result<void> {
    if (fd < 0) return {};
    if (::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes) == 0) return {};
    return syscall_error("setsockopt SO_SNDBUF", path_);
  };
  PF_TRY(bound(main_fd(), kMainSendBufferBytes));
  return bound(urgent_fd(), kUrgentSendBufferBytes);
}

QemuPageChannels::Channel& QemuPageChannels::channel_for(PageChannel channel) {
  PF_CHECK(!ended_);
  Channel& out = channel == PageChannel::urgent && urgent_.fd.valid() ? urgent_ : main_;
  out.full = false;
  if (&out == &urgent_) return out;
  if (!part_open_) {
    qemu_stream::append_part_begin(main_.pending);
    part_open_ = true;
  }
  return main_;
}

Result<std::uint64_t> QemuPageChannels::put_pages(PageChannel channel, PageRun run,
                                                  std::span<const std::byte> bytes) {
  Channel& out = channel_for(channel);
  PF_ASSIGN(const bool clear, flush_channel(out));
  if (!clear) return 0;
  const std::size_t records = std::min<std::size_t>(run.pages, Batch::kRecordsMax);
  ByteBuffer headers;
  headers.reserve(records * sizeof(std::uint64_t) + qemu_stream::kPageHeaderBytesMax);
  Batch batch;
  batch.record_count = records;
  batch.pieces_per_record = 2;
  const auto before = out.records;
  for (std::size_t i = 0; i < records; ++i) {
    const std::size_t start = headers.size();
    out.records.page_header(headers, run.first + i);
    batch.add(std::span<const std::byte>(headers).subspan(start));
    batch.add(bytes.subspan(bytes_of_pages(i), kPageSizeBytes));
  }
  auto taken = send_batch(out, batch);
  if (!taken || *taken == 0) out.records = before;
  return taken;
}

Result<std::uint64_t> QemuPageChannels::put_zeros(PageChannel channel, PageRun run) {
  Channel& out = channel_for(channel);
  PF_ASSIGN(const bool clear, flush_channel(out));
  if (!clear) return 0;
  const std::size_t records = std::min<std::size_t>(run.pages, Batch::kRecordsMax);
  ByteBuffer bytes;
  bytes.reserve(records * (sizeof(std::uint64_t) + 1) + qemu_stream::kPageHeaderBytesMax);
  Batch batch;
  batch.record_count = records;
  const auto before = out.records;
  for (std::size_t i = 0; i < records; ++i) {
    const std::size_t start = bytes.size();
    out.records.zero(bytes, run.first + i);
    batch.add(std::span<const std::byte>(bytes).subspan(start));
  }
  auto taken = send_batch(out, batch);
  if (!taken || *taken == 0) out.records = before;
  return taken;
}

// Result: how many records are gone. A record that was cut is: its rest is pending.
Result<std::uint64_t> QemuPageChannels::send_batch(Channel& channel, const Batch& batch) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(batch.pieces.data());
  message.msg_iovlen = batch.piece_count;
  ssize_t sent = 0;
  do {
    sent = ::sendmsg(channel.fd.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0 && errno != EAGAIN) return syscall_error("sendmsg", path_);
  auto left = static_cast<std::size_t>(std::max<ssize_t>(sent, 0));
  std::size_t piece = 0;
  while (piece < batch.piece_count && left >= batch.pieces[piece].iov_len) {
    left -= batch.pieces[piece].iov_len;
    ++piece;
  }
  if (piece == batch.piece_count) return batch.record_count;
  channel.full = true;
  const std::size_t whole = piece / batch.pieces_per_record;
  const bool cut = left > 0 || piece % batch.pieces_per_record != 0;
  if (!cut) return whole;
  for (const std::size_t end = (whole + 1) * batch.pieces_per_record; piece < end; ++piece) {
    const iovec& rest = batch.pieces[piece];
    put_bytes(channel.pending,
              std::span(static_cast<const std::byte*>(rest.iov_base), rest.iov_len).subspan(left));
    left = 0;
  }
  return whole + 1;
}

// True when nothing is pending any more.
Result<bool> QemuPageChannels::flush_channel(Channel& channel) {
  if (channel.pending.empty()) return true;  // `full` stays: a put that found no room waits for it
  channel.full = false;
  while (!channel.pending.empty()) {
    const ssize_t sent = ::send(channel.fd.get(), channel.pending.data(), channel.pending.size(),
                                MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      channel.pending.erase(channel.pending.begin(), channel.pending.begin() + sent);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return syscall_error("send", path_);
    channel.full = true;
    return false;
  }
  return true;
}

void QemuPageChannels::end_pages() {
  PF_CHECK(!ended_);
  if (part_open_) qemu_stream::append_part_end(main_.pending);
  qemu_stream::append_ram_end_and_eof(main_.pending);
  if (urgent_.fd.valid()) qemu_stream::append_preempt_channel_end(urgent_.pending);
  ended_ = true;
}

Result<void> QemuPageChannels::flush() {
  if (urgent_.fd.valid()) {
    auto done = flush_channel(urgent_);
    if (!done) return tl::make_unexpected(done.error());
  }
  auto done = flush_channel(main_);
  if (!done) return tl::make_unexpected(done.error());
  return {};
}

}  // namespace pageferry
