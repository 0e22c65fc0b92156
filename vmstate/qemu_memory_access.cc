// Page tables are read from /proc/PID/pagemap (kernel document admin-guide/mm/pagemap): 8 bytes for each 4 KiB, bit 63 present,
// bit 62 swapped out.
#include "vmstate/qemu_memory_access.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "transport/host_identity.h"
#include "transport/os/process_descriptors.h"
#include "vmstate/qemu_process.h"

namespace pageferry {
namespace {

constexpr std::uint64_t kPresentOrSwapped = std::uint64_t{3} << 62;
constexpr std::uint64_t kEntriesPerRead = std::uint64_t{64} << 10;

Result<std::vector<std::uint64_t>> addresses_of(const MemoryLayout& layout,
                                                const std::vector<QemuRamBlock>& blocks) {
  std::vector<std::uint64_t> addresses;
  for (const RamBlock& block : layout.blocks()) {
    const auto there =
        std::find_if(blocks.begin(), blocks.end(),
                     [&block](const QemuRamBlock& one) { return one.name == block.name; });
    if (there == blocks.end() || !there->host_address) {
      return fail(Errc::unsupported,
                  fmt::format("QEMU does not say where its RAM block '{}' is (8.2 and later do)",
                              block.name));
    }
    if (*there->host_address % block.backing_page_bytes != 0) {
      return fail(Errc::unsupported,
                  fmt::format("RAM block '{}' is at {:#x}, not aligned to its {} byte pages",
                              block.name, *there->host_address, block.backing_page_bytes));
    }
    addresses.push_back(*there->host_address);
  }
  return addresses;
}

// Any descriptor tells whether we may: QEMU has its userfaultfd only later.
Result<void> try_to_duplicate(int pid, const UniqueFd& pidfd) {
  PF_ASSIGN(const std::vector<int> open, descriptors_of(pid, std::nullopt));
  if (open.empty()) return fail(Errc::unsupported, fmt::format("QEMU {} has no descriptors", pid));
  return check_may_duplicate(pidfd, open.front());
}

Result<void> mark_block(const UniqueFd& pagemap, const RamBlock& block, std::uint64_t address,
                        SentMap& sent) {
  const std::uint64_t unit = pages_of_bytes(block.backing_page_bytes);
  std::vector<std::uint64_t> entries(std::min(kEntriesPerRead, block.pages()));
  for (std::uint64_t page = 0; page < block.pages(); page += unit) {
    const std::uint64_t in_buffer = page % kEntriesPerRead;
    if (in_buffer == 0) {
      const std::uint64_t count = std::min(kEntriesPerRead, block.pages() - page);
      const auto offset = static_cast<off_t>((pages_of_bytes(address) + page) * sizeof(entries[0]));
      const std::size_t bytes = count * sizeof(entries[0]);
      const ssize_t got = ::pread(pagemap.get(), entries.data(), bytes, offset);
      if (got != static_cast<ssize_t>(bytes)) return syscall_error("pread", "pagemap of QEMU");
    }
    const PageRun run{.first = block.first_page + page, .pages = unit};
    if ((entries[in_buffer] & kPresentOrSwapped) == 0) continue;
    if (sent.state(run.first) == PageState::absent) sent.mark_received(run);
  }
  return {};
}

}  // namespace

Result<QemuMemoryAccess> QemuMemoryAccess::probe(int qemu_pid, const MemoryLayout& layout,
                                                 const std::vector<QemuRamBlock>& blocks) {
  PF_ASSIGN(auto addresses, addresses_of(layout, blocks));
  PF_ASSIGN(const ProcessIdentity identity, identify_process(qemu_pid));
  PF_ASSIGN(UniqueFd pidfd, open_pidfd(identity));
  if (auto allowed = try_to_duplicate(qemu_pid, pidfd); !allowed) {
    return with_context(std::move(allowed).error(),
                        fmt::format("no way into the memory of QEMU {}", qemu_pid));
  }
  return QemuMemoryAccess(qemu_pid, std::move(pidfd), std::move(addresses));
}

Result<UniqueFd> QemuMemoryAccess::userfault() const {
  PF_ASSIGN(const std::vector<int> found, descriptors_of(pid_, kUserfaultDescriptor));
  if (found.empty()) {
    return fail(Errc::not_found, fmt::format("QEMU {} has no userfaultfd", pid_));
  }
  if (found.size() > 1) {
    return fail(Errc::vmm,
                fmt::format("QEMU {} has {} userfaultfds, must be one", pid_, found.size()));
  }
  return duplicate_descriptor(pidfd_, found.front());
}

Result<void> QemuMemoryAccess::mark_present(const MemoryLayout& layout, SentMap& sent) const {
  const std::string path = fmt::format("/proc/{}/pagemap", pid_);
  const UniqueFd pagemap(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid()) return syscall_error("open", path);
  for (std::size_t i = 0; i < block_addresses_.size(); ++i) {
    PF_TRY(mark_block(pagemap, layout.blocks()[i], block_addresses_[i], sent));
  }
  return {};
}

}  // namespace pageferry
