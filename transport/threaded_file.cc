// Two queues under one mutex, two eventfds. The inner thread polls for requests and for the inner file's completions; it
// holds the mutex only to move a queue out, never during a call of the inner file. What has come together while it was busy
// goes to the inner file as one batch.
//
// Invariants
//   T0: under the mutex, an eventfd is readable exactly when its queue holds something (or the thread shall stop): a queue that
//       is not empty is not rung for again, and an empty one costs no system call.
//   T1: each request becomes exactly one IoDone, also when the inner submit fails.
//   T2: the inner file is destroyed on the inner thread, so that a store that hangs there hangs nobody else.
#include "transport/threaded_file.h"

#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <system_error>

#include "transport/os/fd.h"

namespace pageferry {
namespace {

struct Request {
  IoKind kind = IoKind::read;
  std::uint64_t tag = 0;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;  // of an allocation
  IoPriority priority = IoPriority::normal;
};

void ring(const UniqueFd& fd) {
  const std::uint64_t one = 1;
  while (::write(fd.get(), &one, sizeof one) < 0 && errno == EINTR) {
  }
}

void quiet(const UniqueFd& fd) {
  std::uint64_t count = 0;
  while (::read(fd.get(), &count, sizeof count) < 0 && errno == EINTR) {
  }
}

Result<void> submit_to(StorageFile& file, const Request& request) {
  switch (request.kind) {
    case IoKind::read:
      return file.submit_read({request.data, request.bytes}, request.offset, request.tag,
                              request.priority);
    case IoKind::write:
      return file.submit_write({request.data, request.bytes}, request.offset, request.tag,
                               request.priority);
    case IoKind::sync:
      return file.submit_sync(request.tag);
    case IoKind::allocate:
      return file.submit_allocate(request.offset, request.length, request.tag);
  }
  return fail(Errc::invalid, "unknown kind of I/O");
}

}  // namespace

struct ThreadedFile::Shared {
  // Constant after construction; `inner` is touched by the inner thread only, except size().
  std::unique_ptr<StorageFile> inner;
  UniqueFd request_event;
  UniqueFd done_event;
  // Under the mutex.
  std::mutex mutex;
  std::condition_variable ended_changed;
  std::vector<Request> requests;
  std::vector<IoDone> done;
  bool stop = false;
  bool ended = false;

  void add(const Request& request) {
    const std::lock_guard lock(mutex);
    requests.push_back(request);
    if (requests.size() == 1) ring(request_event);
  }
  void run();
  void submit_taken(const std::vector<Request>& taken, std::vector<IoDone>& finished);
  // Returns false when it is time to end.
  bool step(std::vector<Request>& taken, std::vector<IoDone>& finished);
};

void ThreadedFile::Shared::submit_taken(const std::vector<Request>& taken,
                                        std::vector<IoDone>& finished) {
  if (taken.empty()) return;
  inner->begin_batch();
  for (const Request& request : taken) {
    if (Result<void> submitted = submit_to(*inner, request); !submitted) {
      finished.push_back({request.tag, request.kind, std::move(submitted)});
    }
  }
  inner->end_batch();
}

bool ThreadedFile::Shared::step(std::vector<Request>& taken, std::vector<IoDone>& finished) {
  pollfd waiting[2] = {{request_event.get(), POLLIN, 0}, {inner->completion_fd(), POLLIN, 0}};
  (void)::poll(waiting, 2, -1);
  taken.clear();
  finished.clear();
  bool stopping = false;
  {
    const std::lock_guard lock(mutex);
    if (!requests.empty()) quiet(request_event);
    taken.swap(requests);
    stopping = stop;
  }
  submit_taken(taken, finished);
  inner->reap(finished);
  if (!finished.empty()) {
    const std::lock_guard lock(mutex);
    if (done.empty()) ring(done_event);
    std::move(finished.begin(), finished.end(), std::back_inserter(done));
  }
  return !stopping;
}

void ThreadedFile::Shared::run() {
  (void)::pthread_setname_np(::pthread_self(), "pageferry-store");
  std::vector<Request> taken;
  std::vector<IoDone> finished;
  while (step(taken, finished)) {
  }
  inner.reset();
  const std::lock_guard lock(mutex);
  ended = true;
  ended_changed.notify_all();
}

Result<std::unique_ptr<ThreadedFile>> ThreadedFile::over(std::unique_ptr<StorageFile> inner,
                                                         Milliseconds close_wait) {
  auto shared = std::make_shared<Shared>();
  shared->request_event = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  shared->done_event = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!shared->request_event.valid() || !shared->done_event.valid()) {
    return syscall_error("eventfd", inner->name());
  }
  shared->inner = std::move(inner);
  std::unique_ptr<ThreadedFile> file(new ThreadedFile(shared, close_wait));
  try {
    file->thread_ = std::thread([shared] { shared->run(); });
  } catch (const std::system_error& error) {
    return fail(Errc::io, fmt::format("no thread for {}: {}", file->name(), error.what()));
  }
  return file;
}

ThreadedFile::ThreadedFile(std::shared_ptr<Shared> shared, Milliseconds close_wait)
    : StorageFile(shared->inner->name(), shared->inner->alignment_bytes(),
                  shared->inner->queue_depth()),
      shared_(std::move(shared)),
      close_wait_(close_wait) {}

ThreadedFile::~ThreadedFile() {
  if (!thread_.joinable()) return;
  bool ended = false;
  {
    std::unique_lock lock(shared_->mutex);
    shared_->stop = true;
    ring(shared_->request_event);
    ended = shared_->ended_changed.wait_for(lock, close_wait_, [this] { return shared_->ended; });
  }
  if (ended) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

Result<void> ThreadedFile::submit_read_impl(std::span<std::byte> to, std::uint64_t offset,
                                            std::uint64_t tag, IoPriority priority) {
  shared_->add({IoKind::read, tag, to.data(), to.size(), offset, 0, priority});
  return {};
}

Result<void> ThreadedFile::submit_write_impl(std::span<const std::byte> from, std::uint64_t offset,
                                             std::uint64_t tag, IoPriority priority) {
  // Only passed on; submit_write takes it as const again.
  shared_->add(
      {IoKind::write, tag, const_cast<std::byte*>(from.data()), from.size(), offset, 0, priority});
  return {};
}

Result<void> ThreadedFile::submit_sync_impl(std::uint64_t tag) {
  shared_->add({IoKind::sync, tag, nullptr, 0, 0, 0, IoPriority::demand});
  return {};
}

Result<void> ThreadedFile::submit_allocate_impl(std::uint64_t offset, std::uint64_t length,
                                                std::uint64_t tag) {
  shared_->add({IoKind::allocate, tag, nullptr, 0, offset, length, IoPriority::normal});
  return {};
}

void ThreadedFile::reap_impl(std::vector<IoDone>& done) {
  const std::lock_guard lock(shared_->mutex);
  if (shared_->done.empty()) return;
  quiet(shared_->done_event);
  std::move(shared_->done.begin(), shared_->done.end(), std::back_inserter(done));
  shared_->done.clear();
}

int ThreadedFile::completion_fd_impl() const {
  return shared_->done_event.get();
}

Result<std::uint64_t> ThreadedFile::size_impl() const {
  return shared_->inner->size();
}

}  // namespace pageferry
