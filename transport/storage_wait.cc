// One poll(2) over the completion eventfd and the cancel eventfd. Completions win over a cancel
// that came at the same time: they are facts.
#include "transport/storage_wait.h"

#include <fmt/format.h>
#include <poll.h>

#include <cerrno>

namespace pageferry {

Result<void> wait_for_completions(StorageFile& file, const WaitBounds& bounds,
                                  std::vector<IoDone>& done) {
  const std::size_t before = done.size();
  for (;;) {
    file.reap(done);
    if (done.size() > before) return {};
    if (bounds.cancel != nullptr && bounds.cancel->canceled()) {
      return fail(Errc::canceled, fmt::format("{}: canceled with {} operations in flight",
                                              file.name(), file.in_flight()));
    }
    if (bounds.deadline.passed()) {
      return fail(Errc::timeout,
                  fmt::format("{}: no answer from the store, {} operations in flight", file.name(),
                              file.in_flight()));
    }
    pollfd waiting[2] = {{file.completion_fd(), POLLIN, 0}, {-1, POLLIN, 0}};
    if (bounds.cancel != nullptr) waiting[1].fd = bounds.cancel->fd();
    const int ready = ::poll(waiting, 2, bounds.deadline.poll_timeout_ms());
    if (ready < 0 && errno != EINTR) return syscall_error("poll", file.name());
  }
}

namespace {

Result<void> finish_one(StorageFile& file, const WaitBounds& bounds) {
  std::vector<IoDone> done;
  PF_TRY(wait_for_completions(file, bounds, done));
  PF_CHECK(done.size() == 1 && file.in_flight() == 0);
  return std::move(done.front().outcome);
}

}  // namespace

Result<void> read_blocking(StorageFile& file, std::span<std::byte> to, std::uint64_t offset,
                           const WaitBounds& bounds) {
  PF_TRY(file.submit_read(to, offset, 0, IoPriority::demand));
  return finish_one(file, bounds);
}

Result<void> write_blocking(StorageFile& file, std::span<const std::byte> from,
                            std::uint64_t offset, const WaitBounds& bounds) {
  PF_TRY(file.submit_write(from, offset, 0, IoPriority::demand));
  return finish_one(file, bounds);
}

Result<void> sync_blocking(StorageFile& file, const WaitBounds& bounds) {
  PF_TRY(file.submit_sync(0));
  return finish_one(file, bounds);
}

}  // namespace pageferry
