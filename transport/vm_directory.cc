// The store is a place where others may write too (a volume that both hosts mount), so nothing in
// it is trusted by name: directories are opened without following a symlink and judged by what the
// descriptor says, and every further step is relative to a descriptor. Removing takes only names of
// our own form and never walks deeper than an attempt's files.
#include "transport/vm_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <utility>

#include "transport/os/clock.h"
#include "transport/record_files.h"

namespace pageferry {
namespace {

constexpr mode_t kDirectoryMode = 0700;
constexpr mode_t kOthersMask = 0077;
constexpr std::string_view kAttemptPrefix = "attempt.";
constexpr long kNfsMagic = 0x6969;
constexpr int kOpenFileIntervalMs = 10;
constexpr int kDirectoryFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

bool is_alphanumeric(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

// Opens `name` in `parent` (or AT_FDCWD) as a directory and no symlink.
Result<UniqueFd> open_directory(int parent, const std::string& name, const std::string& subject) {
  UniqueFd fd(::openat(parent, name.c_str(), kDirectoryFlags));
  if (fd.valid()) return fd;
  const int open_errno = errno;
  // With O_DIRECTORY | O_NOFOLLOW a symlink gives ENOTDIR or ELOOP; say which of the two it is.
  if (open_errno == ENOTDIR || open_errno == ELOOP) {
    struct stat status {};
    const bool link = ::fstatat(parent, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 &&
                      S_ISLNK(status.st_mode);
    return fail(Errc::invalid,
                fmt::format("{}: it is {}", subject,
                            link ? "a symlink, which is never followed here" : "not a directory"));
  }
  return syscall_error("open", subject, open_errno);
}

// Only its owner may enter, and that is us. NFS maps user ids (root_squash), so there the mode has
// to do.
Result<void> check_private(int fd, const std::string& subject) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return syscall_error("fstat", subject);
  if ((status.st_mode & kOthersMask) != 0) {
    return fail(Errc::invalid, fmt::format("{}: mode {:04o} lets others in, want 0700", subject,
                                           status.st_mode & 07777U));
  }
  struct statfs file_system {};
  if (::fstatfs(fd, &file_system) != 0) return syscall_error("fstatfs", subject);
  if (status.st_uid != ::geteuid() && file_system.f_type != kNfsMagic) {
    return fail(Errc::invalid, fmt::format("{}: it belongs to user {}, we are user {}", subject,
                                           status.st_uid, ::geteuid()));
  }
  return {};
}

Result<std::vector<std::string>> names_in(int directory, const std::string& subject) {
  PF_ASSIGN(UniqueFd again, open_directory(directory, ".", subject));
  DIR* stream = ::fdopendir(again.get());
  if (stream == nullptr) return syscall_error("fdopendir", subject);
  static_cast<void>(again.release());
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(stream)) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
    errno = 0;
  }
  const int read_errno = errno;
  ::closedir(stream);
  if (read_errno != 0) return syscall_error("readdir", subject, read_errno);
  return names;
}

// The name that an NFS client (and FUSE) gives to a file that is removed while a process of this host has it open. It goes by itself
// when that closes it; until then the directory is not empty.
bool is_kept_while_open(std::string_view name) {
  return name.starts_with(".nfs") || name.starts_with(".fuse_hidden");
}

// Nothing is removed unless all of it is ours to remove.
Result<void> remove_files_in(int directory, const std::string& subject) {
  PF_ASSIGN(const std::vector<std::string> names, names_in(directory, subject));
  for (const std::string& name : names) {
    struct stat status {};
    if (::fstatat(directory, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
      if (errno == ENOENT) continue;
      return syscall_error("fstatat", fmt::format("{}/{}", subject, name));
    }
    if (S_ISDIR(status.st_mode)) {
      return fail(Errc::invalid,
                  fmt::format("{}/{}: a directory inside an attempt is not ours", subject, name));
    }
  }
  for (const std::string& name : names) {
    if (::unlinkat(directory, name.c_str(), 0) == 0 || errno == ENOENT) continue;
    if (errno == EBUSY && is_kept_while_open(name)) continue;
    return syscall_error("unlink", fmt::format("{}/{}", subject, name));
  }
  return {};
}

// False: it is not empty.
Result<bool> remove_directory(int parent, const std::string& name, const std::string& subject) {
  if (::unlinkat(parent, name.c_str(), AT_REMOVEDIR) == 0 || errno == ENOENT) return true;
  if (errno == ENOTEMPTY || errno == EEXIST) return false;
  return syscall_error("rmdir", subject);
}

// Why a directory is not empty although all in it was removed.
Error what_is_left_in(int directory, const std::string& subject) {
  const auto names = names_in(directory, subject);
  if (!names) return names.error();
  const auto open_file = std::find_if(names->begin(), names->end(), is_kept_while_open);
  if (open_file == names->end()) {
    return Error{Errc::io, ENOTEMPTY, fmt::format("rmdir {}: somebody puts files there", subject)};
  }
  return Error{Errc::busy, 0,
               fmt::format("{}/{}: a process of this host still has the removed file open; it goes "
                           "when that closes it, the directory with the next move",
                           subject, *open_file)};
}

}  // namespace

Result<void> validate_vm_name(std::string_view name) {
  const auto allowed = [](char c) {
    return is_alphanumeric(c) || c == '.' || c == '_' || c == '-';
  };
  if (!name.empty() && name.size() <= kVmNameBytesMax && is_alphanumeric(name.front()) &&
      std::all_of(name.begin(), name.end(), allowed)) {
    return {};
  }
  return fail(
      Errc::invalid,
      fmt::format("VM name of {} bytes: want 1..{} of [A-Za-z0-9._-], a letter or digit first",
                  name.size(), kVmNameBytesMax));
}

std::string attempt_name(Epoch epoch, const RandomId& id) {
  return fmt::format("{}{}.{}", kAttemptPrefix, raw(epoch), id.hex());
}

std::optional<AttemptName> parse_attempt_name(std::string_view name) {
  if (!name.starts_with(kAttemptPrefix)) return std::nullopt;
  const std::string_view rest = name.substr(kAttemptPrefix.size());
  const std::size_t dot = rest.find('.');
  if (dot == std::string_view::npos) return std::nullopt;
  std::uint32_t epoch = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + dot, epoch);
  const auto id = RandomId::parse(rest.substr(dot + 1));
  if (error != std::errc() || epoch > kEpochMax || !id) return std::nullopt;
  if (attempt_name(Epoch{epoch}, *id) != name) return std::nullopt;
  return AttemptName{Epoch{epoch}, *id};
}

Result<VmDirectory> VmDirectory::open(const std::string& store, std::string_view vm_name,
                                      IfMissing if_missing) {
  PF_TRY(validate_vm_name(vm_name));
  // A trailing slash would make the kernel follow a symlink despite O_NOFOLLOW.
  std::string store_path = store;
  while (store_path.size() > 1 && store_path.back() == '/') store_path.pop_back();
  if (store_path.empty()) return fail(Errc::invalid, "store: the path is empty");
  PF_ASSIGN(const UniqueFd parent, open_directory(AT_FDCWD, store_path, "store " + store_path));
  const std::string name(vm_name);
  const std::string path = store_path + "/" + name;
  if (if_missing == IfMissing::create) {
    if (::mkdirat(parent.get(), name.c_str(), kDirectoryMode) != 0 && errno != EEXIST) {
      return syscall_error("mkdir", path);
    }
    // Also when it was there: its maker may have died before this.
    PF_TRY(sync_descriptor(parent.get(), store_path));
  }
  PF_ASSIGN(UniqueFd directory, open_directory(parent.get(), name, path));
  PF_TRY(check_private(directory.get(), path));
  return VmDirectory(std::move(directory), path);
}

Result<OwnershipLog> VmDirectory::open_log() const {
  PF_ASSIGN(UniqueFd again, open_directory(fd(), ".", path_));
  return OwnershipLog(make_posix_record_files(std::move(again), path_));
}

Result<Attempt> VmDirectory::create_attempt(Epoch epoch) const {
  PF_ASSIGN(const RandomId id, RandomId::make());
  Attempt attempt;
  attempt.name = attempt_name(epoch, id);
  const std::string subject = path_ + "/" + attempt.name;
  if (::mkdirat(fd(), attempt.name.c_str(), kDirectoryMode) != 0) {
    return syscall_error("mkdir", subject);
  }
  PF_ASSIGN(attempt.directory, open_directory(fd(), attempt.name, subject));
  PF_TRY(sync_descriptor(fd(), path_));
  return attempt;
}

Result<Attempt> VmDirectory::open_attempt(std::string_view name) const {
  if (!parse_attempt_name(name)) {
    return fail(Errc::invalid, fmt::format("{}: not the name of an attempt (attempt.N.ID)", path_));
  }
  Attempt attempt;
  attempt.name = name;
  PF_ASSIGN(attempt.directory, open_directory(fd(), attempt.name, path_ + "/" + attempt.name));
  return attempt;
}

Result<std::vector<std::string>> VmDirectory::list_attempts() const {
  PF_ASSIGN(std::vector<std::string> names, names_in(fd(), path_));
  std::vector<std::pair<std::uint32_t, std::string>> attempts;
  for (std::string& name : names) {
    if (const auto parsed = parse_attempt_name(name)) {
      attempts.emplace_back(raw(parsed->epoch), std::move(name));
    }
  }
  std::sort(attempts.begin(), attempts.end());
  std::vector<std::string> sorted;
  sorted.reserve(attempts.size());
  for (auto& [epoch, name] : attempts) sorted.push_back(std::move(name));
  return sorted;
}

Result<void> VmDirectory::remove_attempt(std::string_view name) const {
  auto attempt = open_attempt(name);
  if (!attempt) {
    if (attempt.error().code == Errc::not_found) return {};
    return Unexpected(std::move(attempt).error());
  }
  const std::string subject = path_ + "/" + attempt->name;
  const MonotonicClock clock;
  const Deadline patience = Deadline::after(clock, kOpenFileBound);
  while (true) {
    PF_TRY(remove_files_in(attempt->directory.get(), subject));
    PF_ASSIGN(const bool removed, remove_directory(fd(), attempt->name, subject));
    if (removed) return sync_descriptor(fd(), path_);
    if (patience.passed()) return Unexpected(what_is_left_in(attempt->directory.get(), subject));
    ::poll(nullptr, 0, kOpenFileIntervalMs);
  }
}

}  // namespace pageferry
