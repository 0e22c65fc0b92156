// Read with pread(2): eight bytes a page, at eight times the number of the page.
#include "transport/os/page_tables.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <string>

namespace pageferry {
namespace {

constexpr unsigned kEntryShift = 12;  // an entry stands for 4 KiB, whatever backs them

}  // namespace

Result<PageTables> PageTables::open(int pid) {
  const std::string path = fmt::format("/proc/{}/pagemap", pid);
  UniqueFd pagemap(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (pagemap.valid()) return PageTables(std::move(pagemap));
  const int error = errno;
  Unexpected reason = syscall_error("open", path, error);
  if (error == ENOENT) reason.value().code = Errc::gone;
  if (error == EACCES || error == EPERM) reason.value().code = Errc::unsupported;
  return reason;
}

Result<void> PageTables::read(std::uint64_t address, std::span<std::uint64_t> entries) const {
  const auto offset = static_cast<off_t>((address >> kEntryShift) * sizeof(std::uint64_t));
  const ssize_t got = ::pread(pagemap_.get(), entries.data(), entries.size_bytes(), offset);
  if (got < 0) return syscall_error("pread", fmt::format("pagemap at {:#x}", address));
  if (got == static_cast<ssize_t>(entries.size_bytes())) return {};
  return fail(Errc::gone, fmt::format("page tables at {:#x}: {} of {} bytes, the process has ended",
                                      address, got, entries.size_bytes()));
}

Result<bool> PageTables::has(std::uint64_t address) const {
  std::uint64_t entry = 0;
  PF_TRY(read(address, std::span(&entry, 1)));
  return is_there(entry);
}

}  // namespace pageferry
