// Every level is opened relative to the one above with O_NOFOLLOW and then checked on its
// descriptor, so that nothing can be exchanged between the check and the use.
#include "vmstate/run_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <optional>
#include <string_view>

#include "transport/os/fd.h"

namespace pageferry {
namespace {

constexpr std::size_t kNameBytesMax = 64;
constexpr mode_t kPassThrough = 0711;
constexpr mode_t kPrivate = 0700;
constexpr mode_t kOwnFile = 0600;
constexpr std::string_view kNameBytes =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";

Result<void> check_name(std::string_view what, const std::string& name) {
  if (name.empty() || name.size() > kNameBytesMax || name.front() == '.' ||
      name.find_first_not_of(kNameBytes) != std::string::npos) {
    return fail(
        Errc::invalid,
        fmt::format(
            "{} \"{}\" must be 1 to {} letters, digits, '.', '_' or '-', and not begin with a dot",
            what, name, kNameBytesMax));
  }
  return {};
}

// Opens `name` below `parent` (AT_FDCWD for an absolute path) and refuses what is not safe to put
// our files into.
Result<UniqueFd> open_level(int parent, const std::string& name, const std::string& shown) {
  UniqueFd fd(::openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ELOOP || errno == ENOTDIR)
      return fail(Errc::invalid, fmt::format("{} is no directory, or a symbolic link", shown));
    return syscall_error("open", shown);
  }
  return fd;
}

Result<void> check_level(const UniqueFd& fd, const std::string& shown) {
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return syscall_error("fstat", shown);
  if (status.st_uid != 0 && status.st_uid != ::geteuid()) {
    return fail(Errc::invalid, fmt::format("{} belongs to user {}, must be root's or ours ({})",
                                           shown, status.st_uid, ::geteuid()));
  }
  if ((status.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return fail(Errc::invalid, fmt::format("{} has mode {:o}, others may write to it", shown,
                                           status.st_mode & 07777U));
  }
  return {};
}

Result<UniqueFd> make_level(int parent, const std::string& name, const std::string& shown) {
  const bool made = ::mkdirat(parent, name.c_str(), kPassThrough) == 0;
  if (!made && errno != EEXIST) return syscall_error("mkdir", shown);
  PF_ASSIGN(UniqueFd fd, open_level(parent, name, shown));
  if (made && ::fchmod(fd.get(), kPassThrough) != 0)
    return syscall_error("chmod", shown);  // whatever the umask was
  PF_TRY(check_level(fd, shown));
  return fd;
}

// An older directory, or one of the user's own, may keep the QEMU of another user out.
Result<void> check_passable(const UniqueFd& fd, const std::string& shown,
                            const RunDirectoryOwner& owner) {
  if (owner.uid == ::geteuid()) return {};
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return syscall_error("fstat", shown);
  if ((status.st_mode & S_IXOTH) != 0) return {};
  return fail(Errc::invalid,
              fmt::format("{} has mode {:o}: the QEMU of user {} cannot reach what is below; chmod "
                          "o+x, or choose another --run-dir",
                          shown, status.st_mode & 07777U, owner.uid));
}

struct Levels {
  std::string vm;
  std::string run_id;
};

// <root>/<vm>/<run id>, nothing else.
Result<Levels> levels_of(const std::string& root, const std::string& path) {
  const std::string prefix = root + "/";
  const auto slash = path.rfind('/');
  if (!path.starts_with(prefix) || slash <= prefix.size() || slash == std::string::npos) {
    return fail(Errc::invalid, fmt::format("{} is no run directory below {}", path, root));
  }
  Levels levels{.vm = path.substr(prefix.size(), slash - prefix.size()),
                .run_id = path.substr(slash + 1)};
  PF_TRY(check_name("VM name", levels.vm));
  PF_TRY(check_name("run id", levels.run_id));
  return levels;
}

Result<void> remove_entries(const UniqueFd& directory, const std::string& shown) {
  struct CloseDirectory {
    void operator()(DIR* stream) const { ::closedir(stream); }
  };
  const int copy = ::fcntl(directory.get(), F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return syscall_error("dup", shown);
  const std::unique_ptr<DIR, CloseDirectory> stream(::fdopendir(copy));
  if (!stream) {
    ::close(copy);
    return syscall_error("fdopendir", shown);
  }
  while (const dirent* entry = ::readdir(stream.get())) {
    const std::string_view name = entry->d_name;
    if (name == "." || name == "..") continue;
    if (::unlinkat(directory.get(), entry->d_name, 0) != 0 && errno != ENOENT) {
      return syscall_error("unlink", fmt::format("{}/{}", shown, name));
    }
  }
  return {};
}

}  // namespace

Result<std::string> default_run_root(std::uint32_t our_uid,
                                     const std::string& runtime_dir_of_user) {
  if (our_uid == 0) return std::string("/run/pageferry");
  if (runtime_dir_of_user.empty() || runtime_dir_of_user.front() != '/') {
    return fail(
        Errc::invalid,
        fmt::format("XDG_RUNTIME_DIR is \"{}\", no absolute path: name a directory with --run-dir",
                    runtime_dir_of_user));
  }
  return runtime_dir_of_user + "/pageferry";
}

Result<std::string> make_run_directory(const std::string& root, const std::string& vm,
                                       const std::string& run_id, const RunDirectoryOwner& owner) {
  PF_TRY(check_name("VM name", vm));
  PF_TRY(check_name("run id", run_id));
  if (root.empty() || root.front() != '/')
    return fail(Errc::invalid, fmt::format("run directory root \"{}\" is not absolute", root));
  std::string path = fmt::format("{}/{}/{}", root, vm, run_id);
  if (path.size() > kRunDirectoryBytesMax) {
    return fail(Errc::invalid, fmt::format("run directory {} has {} bytes, at most {} leave room "
                                           "for the names of sockets: choose a "
                                           "shorter --run-dir or --name",
                                           path, path.size(), kRunDirectoryBytesMax));
  }
  PF_ASSIGN(const UniqueFd root_fd, make_level(AT_FDCWD, root, root));
  PF_TRY(check_passable(root_fd, root, owner));
  const std::string vm_path = fmt::format("{}/{}", root, vm);
  PF_ASSIGN(const UniqueFd vm_fd, make_level(root_fd.get(), vm, vm_path));
  PF_TRY(check_passable(vm_fd, vm_path, owner));
  if (::mkdirat(vm_fd.get(), run_id.c_str(), kPrivate) != 0) return syscall_error("mkdir", path);
  PF_ASSIGN(const UniqueFd run_fd, open_level(vm_fd.get(), run_id, path));
  if (::fchmod(run_fd.get(), kPrivate) != 0) return syscall_error("chmod", path);
  if (owner.uid != ::geteuid() || owner.gid != ::getegid()) {
    if (::fchown(run_fd.get(), owner.uid, owner.gid) != 0) return syscall_error("chown", path);
  }
  return path;
}

Result<void> write_run_file(const std::string& directory, const std::string& name,
                            std::string_view text) {
  const std::string path = directory + "/" + name;
  const std::string draft = name + ".new";
  PF_ASSIGN(const UniqueFd parent, open_level(AT_FDCWD, directory, directory));
  // What a killed writer left.
  if (::unlinkat(parent.get(), draft.c_str(), 0) != 0 && errno != ENOENT)
    return syscall_error("unlink", path + ".new");
  const UniqueFd fd(::openat(parent.get(), draft.c_str(),
                             O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, kOwnFile));
  if (!fd.valid()) return syscall_error("create", path);
  while (!text.empty()) {
    const ssize_t written = ::write(fd.get(), text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return syscall_error("write", path);
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  if (::renameat(parent.get(), draft.c_str(), parent.get(), name.c_str()) != 0)
    return syscall_error("rename", path);
  return {};
}

Result<std::string> read_run_file(const std::string& directory, const std::string& name,
                                  std::size_t bytes_max) {
  const std::string path = directory + "/" + name;
  PF_ASSIGN(const UniqueFd parent, open_level(AT_FDCWD, directory, directory));
  // O_NONBLOCK: nobody writes to a FIFO that stands there instead.
  const UniqueFd fd(
      ::openat(parent.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ELOOP) return fail(Errc::invalid, fmt::format("{} is a symbolic link", path));
    return syscall_error("open", path);
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return syscall_error("fstat", path);
  const auto size = static_cast<std::size_t>(status.st_size);
  if (!S_ISREG(status.st_mode) || size > bytes_max) {
    return fail(Errc::invalid,
                fmt::format("{} has {} bytes, at most {}, and must be a regular file", path, size,
                            bytes_max));
  }
  if (status.st_uid != 0 && status.st_uid != ::geteuid()) {
    return fail(Errc::invalid, fmt::format("{} belongs to user {}, must be root's or ours ({})",
                                           path, status.st_uid, ::geteuid()));
  }
  std::string text(size, '\0');
  std::size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(fd.get(), text.data() + done, size - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return syscall_error("read", path);
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  text.resize(done);
  return text;
}

Result<void> remove_run_file(const std::string& directory, const std::string& name) {
  const std::string path = directory + "/" + name;
  if (::unlink(path.c_str()) == 0 || errno == ENOENT) return {};
  return syscall_error("unlink", path);
}

Result<void> remove_run_directory(const std::string& root, const std::string& path) {
  PF_ASSIGN(const Levels levels, levels_of(root, path));
  const auto gone = [](const Error& error) { return error.code == Errc::not_found; };
  const auto root_fd = open_level(AT_FDCWD, root, root);
  if (!root_fd)
    return gone(root_fd.error()) ? Result<void>() : tl::make_unexpected(root_fd.error());
  const auto vm_fd = open_level(root_fd->get(), levels.vm, fmt::format("{}/{}", root, levels.vm));
  if (!vm_fd) return gone(vm_fd.error()) ? Result<void>() : tl::make_unexpected(vm_fd.error());
  const auto run_fd = open_level(vm_fd->get(), levels.run_id, path);
  if (run_fd) {
    PF_TRY(remove_entries(*run_fd, path));
    if (::unlinkat(vm_fd->get(), levels.run_id.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT)
      return syscall_error("rmdir", path);
  } else if (!gone(run_fd.error())) {
    return tl::make_unexpected(run_fd.error());
  }
  if (::unlinkat(root_fd->get(), levels.vm.c_str(), AT_REMOVEDIR) != 0 && errno != ENOTEMPTY &&
      errno != EEXIST && errno != ENOENT) {
    return syscall_error("rmdir", fmt::format("{}/{}", root, levels.vm));
  }
  return {};
}

}  // namespace pageferry
