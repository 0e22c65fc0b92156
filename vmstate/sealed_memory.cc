// F_GET_SEALS answers only for memory files (memfd, tmpfs, hugetlbfs), so that asking for the seals also asks for the kind.
#include "vmstate/sealed_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace pageferry {
namespace {

constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW;
constexpr int kContentSeals = kSizeSeals | F_SEAL_WRITE;
#ifndef F_SEAL_FUTURE_WRITE  // 5.1
constexpr int kSealFutureWrite = 0x10;
#else
constexpr int kSealFutureWrite = F_SEAL_FUTURE_WRITE;
#endif

Result<UniqueFd> make_unsealed(const char* name, std::uint64_t bytes) {
  UniqueFd memory(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory.valid()) return syscall_error("memfd_create", name);
  if (::ftruncate(memory.get(), static_cast<off_t>(bytes)) != 0) {
    return syscall_error("ftruncate", fmt::format("{}, {} bytes", name, bytes));
  }
  return memory;
}

Result<void> add_seals(const UniqueFd& memory, int seals) {
  if (::fcntl(memory.get(), F_ADD_SEALS, seals) == 0) return {};
  return syscall_error("F_ADD_SEALS", "memfd");
}

}  // namespace

Result<UniqueFd> make_sealed_memory(const char* name, std::uint64_t bytes) {
  PF_ASSIGN(UniqueFd memory, make_unsealed(name, bytes));
  PF_TRY(add_seals(memory, kSizeSeals));
  return memory;
}

Result<UniqueFd> make_sealed_memory(const char* name, std::span<const std::byte> content) {
  PF_ASSIGN(UniqueFd memory, make_unsealed(name, content.size()));
  for (std::size_t done = 0; done < content.size();) {
    const ssize_t wrote = ::pwrite(memory.get(), content.data() + done, content.size() - done,
                                   static_cast<off_t>(done));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return syscall_error("pwrite", name);
    done += static_cast<std::size_t>(wrote);
  }
  PF_TRY(add_seals(memory, kContentSeals | F_SEAL_SEAL));
  return memory;
}

Result<void> seal_for_other_writers(const UniqueFd& memory) {
  return add_seals(memory, kSizeSeals | kSealFutureWrite | F_SEAL_SEAL);
}

Result<UniqueFd> reopen_read_only(const UniqueFd& memory) {
  const std::string path = fmt::format("/proc/self/fd/{}", memory.get());
  UniqueFd reopened(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (reopened.valid()) return reopened;
  Unexpected reason = syscall_error("open for reading", path);
  if (reason.value().code == Errc::not_found) reason.value().code = Errc::unsupported;
  return reason;
}

Result<void> check_sealed_memory(std::string_view what, const UniqueFd& memory, std::uint64_t bytes,
                                 Sealed sealed) {
  const int wanted = sealed == Sealed::content ? kContentSeals : kSizeSeals;
  const int seals = ::fcntl(memory.get(), F_GET_SEALS);
  struct stat status {};
  if (seals < 0 || ::fstat(memory.get(), &status) != 0) {
    return fail(Errc::invalid, fmt::format("{} is no memory file", what));
  }
  if ((seals & wanted) != wanted) {
    return fail(Errc::invalid,
                fmt::format("{} has the seals {:#x}, must have {:#x}", what, seals, wanted));
  }
  if (static_cast<std::uint64_t>(status.st_size) == bytes) return {};
  return fail(Errc::invalid,
              fmt::format("{} has {} bytes, must have {}", what, status.st_size, bytes));
}

Result<std::vector<std::byte>> read_sealed_memory(const UniqueFd& memory, std::uint64_t bytes) {
  std::vector<std::byte> content(bytes);
  for (std::size_t done = 0; done < content.size();) {
    const ssize_t got = ::pread(memory.get(), content.data() + done, content.size() - done,
                                static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return syscall_error("pread", "memfd", got == 0 ? ENODATA : errno);
    done += static_cast<std::size_t>(got);
  }
  return content;
}

}  // namespace pageferry
