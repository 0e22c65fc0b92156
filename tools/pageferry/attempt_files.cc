// Plain system calls on descriptors: these files are small and written once. The page file has its
// own writer.
#include "tools/pageferry/attempt_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "pager/page_file_verify.h"
#include "transport/aio_file.h"
#include "transport/threaded_file.h"

namespace pageferry {
namespace {

constexpr std::size_t kSmallFileBytesMax = std::size_t{512} << 20;
constexpr Seconds kOpenBound{120};
constexpr Seconds kPreloadBound{1};       // it only saves time
constexpr Milliseconds kCloseWait{3000};  // more than AioFile takes for what is in flight
constexpr std::size_t kReadPieceBytes = std::size_t{1} << 20;

std::string path_of(const Attempt& attempt, const std::string& file_name) {
  return attempt.name + "/" + file_name;
}

Result<void> write_all(int fd, std::span<const std::byte> bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return syscall_error("write", path);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return {};
}

// A call into a store that hangs then holds up its own thread, not the one that must hear a cancel.
Result<std::unique_ptr<StorageFile>> on_its_own_thread(std::unique_ptr<StorageFile> file) {
  PF_ASSIGN(std::unique_ptr<ThreadedFile> apart, ThreadedFile::over(std::move(file), kCloseWait));
  return std::unique_ptr<StorageFile>(std::move(apart));
}

Result<std::unique_ptr<StorageFile>> open_with_faults(const Attempt& attempt,
                                                      const std::vector<StorageFault>& faults,
                                                      const Clock& clock) {
  PF_ASSIGN(std::unique_ptr<StorageFile> file, open_pages_to_read(attempt));
  return with_faults(std::move(file), faults, clock);
}

}  // namespace

Result<std::unique_ptr<StorageFile>> with_faults(std::unique_ptr<StorageFile> file,
                                                 const std::vector<StorageFault>& faults,
                                                 const Clock& clock) {
  if (faults.empty()) return file;
  PF_ASSIGN(std::unique_ptr<FaultyFile> faulty, FaultyFile::over(std::move(file), faults, clock));
  return std::unique_ptr<StorageFile>(std::move(faulty));
}

Result<void> write_attempt_file(const Attempt& attempt, const std::string& file_name,
                                std::span<const std::byte> bytes) {
  constexpr mode_t kOwnerOnly = 0600;
  const std::string path = path_of(attempt, file_name);
  const UniqueFd fd(::openat(attempt.directory.get(), file_name.c_str(),
                             O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, kOwnerOnly));
  if (!fd.valid()) return syscall_error("create", path);
  PF_TRY(write_all(fd.get(), bytes, path));
  if (::fsync(fd.get()) != 0) return syscall_error("fsync", path);
  if (::fsync(attempt.directory.get()) != 0) return syscall_error("fsync", attempt.name);
  return {};
}

Result<void> write_attempt_text(const Attempt& attempt, const std::string& file_name,
                                std::string_view text) {
  return write_attempt_file(attempt, file_name, std::as_bytes(std::span(text)));
}

Result<std::vector<std::byte>> read_attempt_file(const Attempt& attempt,
                                                 const std::string& file_name) {
  const std::string path = path_of(attempt, file_name);
  const UniqueFd fd(
      ::openat(attempt.directory.get(), file_name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return syscall_error("open", path);
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return syscall_error("fstat", path);
  const auto size = static_cast<std::size_t>(status.st_size);
  if (!S_ISREG(status.st_mode) || size > kSmallFileBytesMax) {
    return fail(Errc::invalid, fmt::format("{}: {} bytes, limit {}, and must be a regular file",
                                           path, size, kSmallFileBytesMax));
  }
  // What this host cached may be older than what another host wrote: drop it before reading.
  ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
  std::vector<std::byte> bytes(size);
  std::size_t done = 0;
  while (done < size) {
    const ssize_t got = ::pread(fd.get(), bytes.data() + done,
                                std::min(kReadPieceBytes, size - done), static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return syscall_error("read", path);
    if (got == 0)
      return fail(Errc::corrupt, fmt::format("{}: ends after {} of {} bytes", path, done, size));
    done += static_cast<std::size_t>(got);
  }
  return bytes;
}

Result<std::string> read_attempt_text(const Attempt& attempt, const std::string& file_name) {
  PF_ASSIGN(const std::vector<std::byte> bytes, read_attempt_file(attempt, file_name));
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

Result<QemuState> read_attempt_state(const Attempt& attempt, const std::string& file_name) {
  PF_ASSIGN(const std::vector<std::byte> bytes, read_attempt_file(attempt, file_name));
  auto state = decode_qemu_state(bytes);
  if (!state) return with_context(std::move(state).error(), path_of(attempt, file_name));
  return state;
}

Result<std::unique_ptr<StorageFile>> create_attempt_pages(const Attempt& attempt,
                                                          const std::vector<StorageFault>& faults,
                                                          const Clock& clock) {
  PF_ASSIGN(std::unique_ptr<AioFile> file,
            AioFile::create(attempt.directory.get(), kPagesFileName, attempt.name, AioOptions{}));
  PF_ASSIGN(std::unique_ptr<StorageFile> pages, with_faults(std::move(file), faults, clock));
  return on_its_own_thread(std::move(pages));
}

Result<std::unique_ptr<StorageFile>> open_pages_to_read(const Attempt& attempt) {
  PF_ASSIGN(std::unique_ptr<AioFile> file,
            AioFile::open(attempt.directory.get(), kPagesFileName, attempt.name, AioOptions{}));
  return std::unique_ptr<StorageFile>(std::move(file));
}

BaseFileOpener bases_in(const Attempt& attempt) {
  return [&attempt](const std::string& file_name) -> Result<std::unique_ptr<StorageFile>> {
    PF_ASSIGN(std::unique_ptr<AioFile> file,
              AioFile::open(attempt.directory.get(), file_name, attempt.name, AioOptions{}));
    return std::unique_ptr<StorageFile>(std::move(file));
  };
}

Result<PageMapPreload::Progress> preload_map(StorageFile& file, const Clock& clock,
                                             PageMapPreload& preload) {
  WaitBounds bounds;
  bounds.deadline = Deadline::after(clock, kPreloadBound);
  return preload.advance(file, PageFileReaderOptions{}.map_bytes_max, bounds);
}

Result<std::unique_ptr<PageFileReader>> open_attempt_pages(const Attempt& attempt,
                                                           const std::vector<StorageFault>& faults,
                                                           const Clock& clock,
                                                           PageReadPreparation prepared) {
  PF_ASSIGN(std::unique_ptr<StorageFile> file, open_with_faults(attempt, faults, clock));
  WaitBounds bounds;
  bounds.deadline = Deadline::after(clock, kOpenBound);
  return PageFileReader::open(std::move(file), PageFileReaderOptions{}, clock, bounds,
                              std::move(prepared), bases_in(attempt));
}

Result<void> verify_attempt_pages(const Attempt& attempt, const std::vector<StorageFault>& faults,
                                  const Clock& clock, const WaitBounds& bounds) {
  PF_ASSIGN(const std::unique_ptr<StorageFile> file, open_with_faults(attempt, faults, clock));
  PF_ASSIGN(const PageFileImage image,
            PageFileImage::load(*file, PageFileReaderOptions{}.map_bytes_max, bounds));
  PF_ASSIGN(const PageFileBases bases,
            PageFileBases::open(image.header, bases_in(attempt), bounds));
  PF_ASSIGN(const VerifyReport report, verify_pages(*file, image, bases, VerifyOptions{}, bounds,
                                                    [](std::uint64_t, std::uint64_t) {}));
  if (report.bad_pages == 0) return {};
  return fail(Errc::corrupt, fmt::format("{} pages read back wrong; first: {}", report.bad_pages,
                                         report.bad.empty() ? "" : report.bad.front()));
}

Result<void> check_commit(const PageFileReader& reader, const RandomId& commit) {
  const std::string found = to_hex(reader.record().commit_id);
  if (found == commit.hex()) return {};
  return fail(Errc::corrupt,
              fmt::format("page file: commit {}, the release names {}", found, commit.hex()));
}

}  // namespace pageferry
