// One file is created, written, synced and linked, the directory synced, everything unlinked. The
// second link(2) to a taken name has to fail with EEXIST: the exclusiveness of records stands on
// nothing else.
#include "transport/store_check.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "transport/io_buffer.h"
#include "transport/os/clock.h"
#include "transport/storage_wait.h"

namespace pageferry {
namespace {

void refuse(StoreReport& report, std::string message) {
  report.findings.push_back({StoreSeverity::refusal, std::move(message)});
}

// Removes a name when the check ends, however it ends.
class NameGuard {
 public:
  NameGuard(int directory_fd, std::string name) : fd_(directory_fd), name_(std::move(name)) {}
  NameGuard(const NameGuard&) = delete;
  NameGuard& operator=(const NameGuard&) = delete;
  ~NameGuard() { (void)::unlinkat(fd_, name_.c_str(), 0); }
  const std::string& name() const { return name_; }

 private:
  int fd_;
  std::string name_;
};

Result<UniqueFd> open_directory(const std::string& path) {
  // With a slash at its end a symlink would be followed.
  std::string plain = path;
  while (plain.size() > 1 && plain.back() == '/') plain.pop_back();
  UniqueFd fd(::open(plain.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (fd.valid()) return fd;
  struct stat facts {};
  const int why = errno;
  if (::lstat(plain.c_str(), &facts) == 0 && S_ISLNK(facts.st_mode)) {
    return fail(Errc::invalid,
                fmt::format("store {} is a symlink: name the directory itself", path));
  }
  if (why == ENOTDIR) return fail(Errc::invalid, fmt::format("store {} is not a directory", path));
  return syscall_error("open store", path, why);
}

Result<std::string> fresh_name() {
  std::uint64_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number) {
    return syscall_error("getrandom", "for a file name");
  }
  return fmt::format(".pageferry-check-{:016x}", number);
}

Result<void> try_links(int directory_fd, const std::string& path, const NameGuard& file,
                       const NameGuard& link) {
  const auto link_once = [&] {
    return ::linkat(directory_fd, file.name().c_str(), directory_fd, link.name().c_str(), 0);
  };
  if (link_once() != 0) return syscall_error("link(2) in", path);
  if (link_once() == 0) {
    return fail(
        Errc::unsupported,
        fmt::format("store {}: a second link(2) to a taken name succeeded: records would not "
                    "be exclusive here",
                    path));
  }
  if (errno != EEXIST) return syscall_error("second link(2), which must say EEXIST, in", path);
  struct stat facts {};
  if (::fstatat(directory_fd, link.name().c_str(), &facts, AT_SYMLINK_NOFOLLOW) != 0) {
    return syscall_error("stat of a linked file in", path);
  }
  if (::fsync(directory_fd) != 0) return syscall_error("fsync of directory", path);
  return {};
}

Result<void> try_file(int directory_fd, StoreReport& report) {
  PF_ASSIGN(const std::string name, fresh_name());
  const NameGuard file_name(directory_fd, name);
  const NameGuard link_name(directory_fd, name + "-link");
  PF_ASSIGN(const std::unique_ptr<AioFile> file,
            AioFile::create(directory_fd, name, report.path, {.queue_depth = 1}));
  report.io_mode = file->io_mode();
  if (report.io_mode == IoMode::buffered) {
    report.findings.push_back({StoreSeverity::warning, file->buffered_reason()});
  }
  PF_ASSIGN(const AlignedMemory memory, AlignedMemory::map(kIoAlignmentBytes));
  const std::span<std::byte> block(memory.data(), kIoAlignmentBytes);
  std::fill(block.begin(), block.end(), std::byte{0x5a});
  const MonotonicClock clock;
  const Nanoseconds start = clock.now();
  PF_TRY(write_blocking(*file, block, 0, {}));
  PF_TRY(sync_blocking(*file, {}));
  report.sync_ns = static_cast<std::uint64_t>((clock.now() - start).count());
  std::fill(block.begin(), block.end(), std::byte{0});
  PF_TRY(read_blocking(*file, block, 0, {}));
  if (!std::all_of(block.begin(), block.end(), [](std::byte b) { return b == std::byte{0x5a}; })) {
    return fail(
        Errc::corrupt,
        fmt::format("store {}: what was written and synced reads back differently", report.path));
  }
  return try_links(directory_fd, report.path, file_name, link_name);
}

void look_at_space(int directory_fd, StoreReport& report) {
  struct statvfs space {};
  if (::fstatvfs(directory_fd, &space) != 0) {
    report.findings.push_back(
        {StoreSeverity::warning, syscall_error("statvfs", report.path).value().message});
    return;
  }
  report.total_bytes = static_cast<std::uint64_t>(space.f_blocks) * space.f_frsize;
  report.free_bytes = static_cast<std::uint64_t>(space.f_bavail) * space.f_frsize;
}

}  // namespace

bool StoreReport::usable() const {
  return refusal().empty();
}

std::string StoreReport::refusal() const {
  for (const StoreFinding& finding : findings) {
    if (finding.severity == StoreSeverity::refusal) return finding.message;
  }
  return {};
}

StoreReport check_store(const std::string& path) {
  StoreReport report;
  report.path = path;
  const Result<UniqueFd> directory = open_directory(path);
  if (!directory) {
    refuse(report, directory.error().message);
    return report;
  }
  struct stat facts {};
  if (::fstat(directory->get(), &facts) == 0 && (facts.st_mode & S_IWOTH) != 0 &&
      (facts.st_mode & S_ISVTX) == 0) {
    report.findings.push_back(
        {StoreSeverity::warning,
         fmt::format("store {} has mode {:04o}: every user may remove or replace what is in it",
                     path, facts.st_mode & 07777U)});
  }
  if (Result<StoreMount> mount = find_mount(directory->get()); mount) {
    report.mount = std::move(*mount);
    for (StoreFinding& finding : judge_mount(report.mount)) {
      report.findings.push_back(std::move(finding));
    }
  } else {
    report.findings.push_back(
        {StoreSeverity::warning, fmt::format("mount options unknown: {}", mount.error().message)});
  }
  look_at_space(directory->get(), report);
  if (Result<void> tried = try_file(directory->get(), report); !tried) {
    refuse(report, fmt::format("store {} cannot be used: {}", path, tried.error().message));
  }
  return report;
}

}  // namespace pageferry
