// PosixRecordFiles: records as files in one directory, every call relative to its descriptor.
//
// NFS keeps what it looked up, "there is no such name" included, for up to acdirmax seconds. Rule 4
// depends on a negative answer being fresh, so refresh_directory() fetches the directory's
// attributes from the server (AT_STATX_FORCE_SYNC): if anything was added since a negative answer
// was cached, the change attribute differs and the client looks up again. Data is never stale: a
// record's content is synced before it gets its name, and every read is a fresh open
// (close-to-open).
#include "transport/record_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace pageferry {
namespace {

constexpr mode_t kRecordMode = 0600;

Result<void> write_all(int fd, std::string_view bytes, const std::string& subject) {
  while (!bytes.empty()) {
    const ssize_t put = ::write(fd, bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return syscall_error("write", subject);
    bytes.remove_prefix(static_cast<std::size_t>(put));
  }
  return {};
}

class PosixRecordFiles final : public RecordFiles {
 public:
  PosixRecordFiles(UniqueFd directory, std::string path)
      : directory_(std::move(directory)), path_(std::move(path)) {}

  Result<void> write_new(const std::string& name, std::string_view bytes) override {
    const UniqueFd file(::openat(directory_.get(), name.c_str(),
                                 O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                                 kRecordMode));
    if (!file.valid()) return syscall_error("create", subject(name));
    PF_TRY(write_all(file.get(), bytes, subject(name)));
    return sync_descriptor(file.get(), subject(name));
  }

  Result<void> link(const std::string& from, const std::string& to) override {
    if (::linkat(directory_.get(), from.c_str(), directory_.get(), to.c_str(), 0) == 0) return {};
    return syscall_error("link", subject(to));
  }

  Result<void> unlink(const std::string& name) override {
    if (::unlinkat(directory_.get(), name.c_str(), 0) == 0) return {};
    return syscall_error("unlink", subject(name));
  }

  Result<void> sync_directory() override { return sync_descriptor(directory_.get(), path_); }

  Result<void> refresh_directory() override {
    struct statx fresh {};
    if (::statx(directory_.get(), "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS,
                &fresh) != 0) {
      return syscall_error("statx", path_);
    }
    return {};
  }

  Result<std::optional<std::string>> read_fresh(const std::string& name,
                                                std::size_t bytes_max) override {
    // O_NONBLOCK: a FIFO planted under a record's name must not stop us.
    const UniqueFd file(
        ::openat(directory_.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (!file.valid()) {
      if (errno == ENOENT) return std::nullopt;
      if (errno == ELOOP) return fail(Errc::corrupt, subject(name) + ": it is a symlink");
      return syscall_error("open", subject(name));
    }
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) return syscall_error("fstat", subject(name));
    if (!S_ISREG(status.st_mode)) {
      return fail(Errc::corrupt, subject(name) + ": it is not a regular file");
    }
    return read_up_to(file.get(), name, bytes_max);
  }

  Result<std::vector<std::string>> list() override {
    UniqueFd again(
        ::openat(directory_.get(), ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!again.valid()) return syscall_error("open", path_);
    DIR* stream = ::fdopendir(again.get());
    if (stream == nullptr) return syscall_error("fdopendir", path_);
    static_cast<void>(again.release());
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(stream)) {
      names.emplace_back(entry->d_name);
      errno = 0;
    }
    const int read_errno = errno;
    ::closedir(stream);
    if (read_errno != 0) return syscall_error("readdir", path_, read_errno);
    return names;
  }

  void pause(Milliseconds duration, const CancelSignal& stop) override {
    pollfd waiting{stop.fd(), POLLIN, 0};
    // EINTR only makes the pause shorter.
    static_cast<void>(::poll(&waiting, 1, static_cast<int>(duration.count())));
  }

 private:
  std::string subject(const std::string& name) const { return path_ + "/" + name; }

  Result<std::optional<std::string>> read_up_to(int fd, const std::string& name,
                                                std::size_t bytes_max) {
    std::string bytes;
    constexpr std::size_t kPieceBytes = std::size_t{16} << 10;
    while (bytes.size() <= bytes_max) {
      const std::size_t have = bytes.size();
      bytes.resize(have + kPieceBytes);
      const ssize_t got = ::read(fd, bytes.data() + have, kPieceBytes);
      const int read_errno = errno;
      bytes.resize(have + (got > 0 ? static_cast<std::size_t>(got) : 0));
      if (got < 0 && read_errno == EINTR) continue;
      if (got < 0) return syscall_error("read", subject(name), read_errno);
      if (got == 0) return bytes;
    }
    return fail(Errc::corrupt, fmt::format("{}: more than {} bytes", subject(name), bytes_max));
  }

  UniqueFd directory_;
  std::string path_;
};

}  // namespace

Result<void> sync_descriptor(int fd, const std::string& subject) {
  if (::fsync(fd) != 0) return syscall_error("fsync", subject);
  return {};
}

std::unique_ptr<RecordFiles> make_posix_record_files(UniqueFd directory, std::string path) {
  return std::make_unique<PosixRecordFiles>(std::move(directory), std::move(path));
}

}  // namespace pageferry
