// libaio, because it is everywhere, needs no locked memory and measured equal to io_uring here.
//
// O_DIRECT is switched on with fcntl after the open: open(O_CREAT|O_DIRECT) on a file system
// without it fails with EINVAL *and leaves the file behind*, so that an exclusive second try would
// fail as well.
//
// Alignment: statx tells it from Linux 6.1 on (STATX_DIOALIGN). Without an answer (older kernel,
// NFS) 4096 is right for every device and file system with blocks up to one page. A file system
// that wants more than a page could not take single pages: it is used buffered.
//
// Invariants
//   A1: a request is busy from a successful io_submit until its completion is handed to the caller.
//   A2: a short transfer is continued from the last aligned byte; the caller sees all or an error.
//   A read that meets the end
//       of the file is Errc::corrupt: whoever reads here knows how long the file has to be.
//   A3: operations that finish at once (allocate, what fails in a batch) are queued in `finished` and
//       ring the eventfd, so that the caller has one place to look.
//   A4: inside a batch requests wait in `held`; io_submit takes them all, in order, at its end.
#include "transport/aio_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <libaio.h>
#include <linux/ioprio.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <fstream>
#include <system_error>
#include <thread>

#include "transport/io_buffer.h"
#include "transport/os/signals_blocked.h"

namespace pageferry {
namespace {

// Not in libaio.h: the request carries an I/O priority (linux/aio_abi.h).
constexpr unsigned kIocbFlagIoprio = 1U << 1;
constexpr std::size_t kEventsPerReap = 64;
// How often one request is started again after EINTR or EAGAIN.
constexpr unsigned kRestartsMax = 16;

struct Request {
  iocb control{};
  IoKind kind = IoKind::read;
  std::uint64_t tag = 0;
  std::byte* data = nullptr;  // what is left to transfer
  std::size_t bytes = 0;
  std::uint64_t offset = 0;
  IoPriority priority = IoPriority::normal;
  unsigned restarts = 0;  // after EINTR or EAGAIN
};

short ioprio_of(IoPriority priority) {
  switch (priority) {
    case IoPriority::demand:
      return IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 0);
    case IoPriority::normal:
      return IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 4);
    case IoPriority::background:
      return IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 7);
  }
  return 0;
}

std::string_view kind_name(IoKind kind) {
  switch (kind) {
    case IoKind::read:
      return "read";
    case IoKind::write:
      return "write";
    case IoKind::sync:
      return "fdatasync";
    case IoKind::allocate:
      return "fallocate";
  }
  return "I/O";
}

// io_destroy(2) waits for a grace period of the kernel, 30 ms measured, and nobody has to wait with it:
// the context is idle. A process that ends first takes the context along.
void destroy_beside(io_context_t context) {
  const SignalsBlocked for_the_thread;
  try {
    std::thread([context] { (void)::io_destroy(context); }).detach();
  } catch (const std::system_error&) {
    (void)::io_destroy(context);
  }
}

std::string first_line(const char* path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line.empty() ? "unknown" : line;
}

Result<std::string> checked_path(std::string_view name, std::string_view where) {
  if (name.empty() || name == "." || name == ".." || name.size() > NAME_MAX ||
      name.find('/') != std::string_view::npos || name.find('\0') != std::string_view::npos) {
    return fail(Errc::invalid, fmt::format("'{}' is not a plain file name", name));
  }
  return fmt::format("{}/{}", where, name);
}

// Empty when the file now has O_DIRECT, else why it has not.
std::string switch_to_direct(int fd, const std::string& path) {
  struct statfs system {};
  if (::fstatfs(fd, &system) == 0 && system.f_type == TMPFS_MAGIC) {
    return fmt::format("{}: tmpfs has no O_DIRECT, using buffered I/O", path);
  }
  struct statx facts {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts) == 0 &&
      (facts.stx_mask & STATX_DIOALIGN) != 0) {
    const std::uint32_t wanted = std::max(facts.stx_dio_mem_align, facts.stx_dio_offset_align);
    if (wanted == 0) {
      return fmt::format("{}: no O_DIRECT on this file system, using buffered I/O", path);
    }
    if (wanted > kIoAlignmentBytes) {
      return fmt::format("{}: O_DIRECT wants {} byte alignment, more than {}: using buffered I/O",
                         path, wanted, kIoAlignmentBytes);
    }
  }
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_DIRECT) != 0) {
    return fmt::format("{}: no O_DIRECT on this file system ({}), using buffered I/O", path,
                       strerrordesc_np(errno));
  }
  return {};
}

void prepare(Request& request, int fd, int event_fd) {
  iocb& control = request.control;
  const auto offset = static_cast<long long>(request.offset);
  switch (request.kind) {
    case IoKind::read:
      io_prep_pread(&control, fd, request.data, request.bytes, offset);
      break;
    case IoKind::write:
      io_prep_pwrite(&control, fd, request.data, request.bytes, offset);
      break;
    case IoKind::sync:
    case IoKind::allocate:
      io_prep_fdsync(&control, fd);
      break;
  }
  io_set_eventfd(&control, event_fd);
  control.data = &request;
  if (request.kind == IoKind::read || request.kind == IoKind::write) {
    control.u.c.flags |= kIocbFlagIoprio;
    control.aio_reqprio = ioprio_of(request.priority);
  }
}

}  // namespace

struct AioFile::State {
  UniqueFd fd;
  UniqueFd event_fd;
  io_context_t context = nullptr;
  Milliseconds close_wait{0};
  std::string buffered_reason;
  std::vector<Request> requests;
  std::vector<Request*> idle;
  std::vector<IoDone> finished;
  bool in_batch = false;
  std::vector<Request*> held;

  void submit_held(const std::string& name);
  Result<void> start(Request& request, const std::string& name);
  void ring() const;
  // The outcome of an event, or nullopt when the rest was submitted again.
  std::optional<Result<void>> settle(Request& request, long transferred, const std::string& name);
};

void AioFile::State::ring() const {
  const std::uint64_t one = 1;
  while (::write(event_fd.get(), &one, sizeof one) < 0 && errno == EINTR) {
  }
}

namespace {

// One or more; the result says how many of them the kernel took, or why not the first.
Result<std::size_t> submit_all(io_context_t context, std::span<Request* const> requests,
                               const std::string& name) {
  Request& first = *requests.front();
  std::vector<iocb*> list;
  list.reserve(requests.size());
  for (Request* request : requests) list.push_back(&request->control);
  for (;;) {
    const int submitted = ::io_submit(context, static_cast<long>(list.size()), list.data());
    if (submitted > 0) return static_cast<std::size_t>(submitted);
    if (submitted == -EINTR) continue;
    if (submitted == -EINVAL && (first.control.u.c.flags & kIocbFlagIoprio) != 0) {
      // A kernel before 4.18 or a policy without priorities: the I/O matters more than its rank.
      first.control.u.c.flags &= ~kIocbFlagIoprio;
      first.control.aio_reqprio = 0;
      continue;
    }
    return syscall_error(kind_name(first.kind),
                         fmt::format("{} ({} bytes at offset {})", name, first.bytes, first.offset),
                         -submitted);
  }
}

}  // namespace

Result<void> AioFile::State::start(Request& request, const std::string& name) {
  prepare(request, fd.get(), event_fd.get());
  if (in_batch) {
    held.push_back(&request);
    return {};
  }
  Request* const only = &request;
  const auto submitted = submit_all(context, {&only, 1}, name);
  if (!submitted) return tl::make_unexpected(submitted.error());
  return {};
}

void AioFile::State::submit_held(const std::string& name) {
  std::span<Request* const> left(held);
  while (!left.empty()) {
    const auto submitted = submit_all(context, left, name);
    if (!submitted) {
      Request* const failed = left.front();
      finished.push_back({failed->tag, failed->kind, tl::make_unexpected(submitted.error())});
      idle.push_back(failed);
      ring();
    }
    left = left.subspan(submitted ? *submitted : 1);
  }
  held.clear();
}

std::optional<Result<void>> AioFile::State::settle(Request& request, long transferred,
                                                   const std::string& name) {
  const auto subject = [&] {
    return request.kind == IoKind::sync
               ? name
               : fmt::format("{} ({} bytes at offset {})", name, request.bytes, request.offset);
  };
  const bool interrupted = transferred == -EINTR || transferred == -EAGAIN;
  if (interrupted && request.kind != IoKind::sync && request.restarts < kRestartsMax) {
    ++request.restarts;
    transferred = 0;
  } else if (transferred < 0) {
    return syscall_error(kind_name(request.kind), subject(), static_cast<int>(-transferred));
  } else if (request.kind == IoKind::sync) {
    return Result<void>();
  } else if (transferred == 0) {
    if (request.kind == IoKind::read) {
      return fail(Errc::corrupt, fmt::format("{}: the file ends before offset {}", name,
                                             request.offset + request.bytes));
    }
    return fail(Errc::io, fmt::format("write {}: nothing was written", subject()));
  }
  const auto moved = static_cast<std::size_t>(transferred);
  if (moved >= request.bytes) return Result<void>();
  const std::size_t keep = moved - moved % kIoAlignmentBytes;
  if (keep == 0 && moved != 0 && request.kind == IoKind::read) {
    return fail(Errc::corrupt, fmt::format("{}: the file ends inside the block at offset {}", name,
                                           request.offset));
  }
  request.data += keep;
  request.bytes -= keep;
  request.offset += keep;
  Result<void> again = start(request, name);
  if (!again) return again;
  return std::nullopt;
}

Unexpected aio_setup_error(int error_number, unsigned wanted) {
  if (error_number == EAGAIN) {
    return fail(
        Errc::busy,
        fmt::format("io_setup: no room for {} asynchronous requests: fs.aio-max-nr is {} and "
                    "{} are in use; raise it with sysctl fs.aio-max-nr=N, N at least {} more",
                    wanted, first_line("/proc/sys/fs/aio-max-nr"),
                    first_line("/proc/sys/fs/aio-nr"), wanted));
  }
  return syscall_error("io_setup", fmt::format("for {} requests", wanted), error_number);
}

Result<std::unique_ptr<AioFile>> AioFile::over(UniqueFd fd, std::string path, AioOptions options) {
  if (options.queue_depth == 0 || options.queue_depth > kAioQueueDepthMax) {
    return fail(Errc::invalid, fmt::format("{}: queue depth {}, limit 1..{}", path,
                                           options.queue_depth, kAioQueueDepthMax));
  }
  struct stat facts {};
  if (::fstat(fd.get(), &facts) != 0) return syscall_error("fstat", path);
  if (!S_ISREG(facts.st_mode)) {
    return fail(Errc::invalid, fmt::format("{} is not a regular file", path));
  }
  auto state = std::make_unique<State>();
  state->buffered_reason = switch_to_direct(fd.get(), path);
  state->fd = std::move(fd);
  state->event_fd = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!state->event_fd.valid()) return syscall_error("eventfd", path);
  state->close_wait = options.close_wait;
  const int set_up = ::io_setup(static_cast<int>(options.queue_depth), &state->context);
  if (set_up != 0) return aio_setup_error(-set_up, options.queue_depth);
  state->requests.resize(options.queue_depth);
  state->idle.reserve(options.queue_depth);
  for (Request& request : state->requests) state->idle.push_back(&request);
  return std::unique_ptr<AioFile>(
      new AioFile(std::move(path), kIoAlignmentBytes, options.queue_depth, std::move(state)));
}

Result<std::unique_ptr<AioFile>> AioFile::create(int directory_fd, std::string_view name,
                                                 std::string_view where, AioOptions options) {
  PF_ASSIGN(std::string path, checked_path(name, where));
  UniqueFd fd(::openat(directory_fd, std::string(name).c_str(),
                       O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return syscall_error("create", path);
  return over(std::move(fd), std::move(path), options);
}

Result<std::unique_ptr<AioFile>> AioFile::open(int directory_fd, std::string_view name,
                                               std::string_view where, AioOptions options) {
  PF_ASSIGN(std::string path, checked_path(name, where));
  // O_NONBLOCK: opening a fifo that somebody put there must not hang.
  UniqueFd fd(::openat(directory_fd, std::string(name).c_str(),
                       O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ELOOP) return fail(Errc::invalid, fmt::format("{} is a symlink: refused", path));
    return syscall_error("open", path);
  }
  // Matters only for buffered I/O: another host may have written the file since.
  (void)::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
  return over(std::move(fd), std::move(path), options);
}

AioFile::AioFile(std::string name, std::size_t alignment_bytes, unsigned queue_depth,
                 std::unique_ptr<State> state)
    : StorageFile(std::move(name), alignment_bytes, queue_depth), state_(std::move(state)) {}

AioFile::~AioFile() {
  const MonotonicClock clock;
  const Deadline deadline = Deadline::after(clock, state_->close_wait);
  std::vector<IoDone> done;
  while (in_flight() > 0 && !deadline.passed()) {
    pollfd waiting{completion_fd(), POLLIN, 0};
    (void)::poll(&waiting, 1, deadline.poll_timeout_ms());
    reap(done);
    done.clear();
  }
  if (in_flight() == 0) {
    destroy_beside(state_->context);
  } else {
    // The kernel still works on it: leak the context, and the requests that its events point to.
    (void)state_.release();
  }
}

IoMode AioFile::io_mode() const {
  return state_->buffered_reason.empty() ? IoMode::direct : IoMode::buffered;
}

const std::string& AioFile::buffered_reason() const {
  return state_->buffered_reason;
}

Result<void> AioFile::submit_read_impl(std::span<std::byte> to, std::uint64_t offset,
                                       std::uint64_t tag, IoPriority priority) {
  PF_CHECK(!state_->idle.empty());
  Request& request = *state_->idle.back();
  request = Request{{}, IoKind::read, tag, to.data(), to.size(), offset, priority, 0};
  PF_TRY(state_->start(request, name()));
  state_->idle.pop_back();
  return {};
}

Result<void> AioFile::submit_write_impl(std::span<const std::byte> from, std::uint64_t offset,
                                        std::uint64_t tag, IoPriority priority) {
  PF_CHECK(!state_->idle.empty());
  Request& request = *state_->idle.back();
  // libaio's iovec is not const; a write only reads.
  request = Request{{},          IoKind::write, tag,      const_cast<std::byte*>(from.data()),
                    from.size(), offset,        priority, 0};
  PF_TRY(state_->start(request, name()));
  state_->idle.pop_back();
  return {};
}

Result<void> AioFile::submit_sync_impl(std::uint64_t tag) {
  PF_CHECK(!state_->idle.empty());
  Request& request = *state_->idle.back();
  request = Request{{}, IoKind::sync, tag, nullptr, 0, 0, IoPriority::demand, 0};
  PF_TRY(state_->start(request, name()));
  state_->idle.pop_back();
  return {};
}

Result<void> AioFile::submit_allocate_impl(std::uint64_t offset, std::uint64_t length,
                                           std::uint64_t tag) {
  // Reserving takes its time, and what was submitted before need not wait for it.
  state_->submit_held(name());
  int result = 0;
  do {
    result =
        ::fallocate(state_->fd.get(), 0, static_cast<off_t>(offset), static_cast<off_t>(length));
  } while (result != 0 && errno == EINTR);
  Result<void> outcome;
  if (result != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
    outcome = syscall_error("fallocate",
                            fmt::format("{} ({} bytes at offset {})", name(), length, offset));
  }
  state_->finished.push_back({tag, IoKind::allocate, std::move(outcome)});
  state_->ring();
  return {};
}

void AioFile::begin_batch_impl() {
  state_->in_batch = true;
}

void AioFile::end_batch_impl() {
  state_->submit_held(name());
  state_->in_batch = false;
}

void AioFile::reap_impl(std::vector<IoDone>& done) {
  State& state = *state_;
  std::uint64_t rings = 0;
  // Cleared before looking: a completion in between rings again.
  while (::read(state.event_fd.get(), &rings, sizeof rings) < 0 && errno == EINTR) {
  }
  std::move(state.finished.begin(), state.finished.end(), std::back_inserter(done));
  state.finished.clear();
  for (;;) {
    io_event events[kEventsPerReap];
    timespec no_wait{};
    const int count = ::io_getevents(state.context, 0, kEventsPerReap, events, &no_wait);
    if (count == -EINTR) continue;
    if (count <= 0) return;
    for (int i = 0; i < count; ++i) {
      auto* request = static_cast<Request*>(events[i].data);
      std::optional<Result<void>> outcome =
          state.settle(*request, static_cast<long>(events[i].res), name());
      if (!outcome) continue;
      done.push_back({request->tag, request->kind, *std::move(outcome)});
      state.idle.push_back(request);
    }
    if (static_cast<std::size_t>(count) < kEventsPerReap) return;
  }
}

int AioFile::completion_fd_impl() const {
  return state_->event_fd.get();
}

Result<std::uint64_t> AioFile::size_impl() const {
  struct stat facts {};
  if (::fstat(state_->fd.get(), &facts) != 0) return syscall_error("fstat", name());
  return static_cast<std::uint64_t>(facts.st_size);
}

}  // namespace pageferry
