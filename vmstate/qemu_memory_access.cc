// Whether it can be done is tried, not reckoned: the rules of ptrace(2) are many.
#include "vmstate/qemu_memory_access.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

#include "pager/present_pages.h"
#include "transport/os/process_descriptors.h"
#include "vmstate/qemu_process.h"

namespace pageferry {
namespace {

Result<std::vector<std::uint64_t>> addresses_of(const MemoryLayout& layout,
                                                const std::vector<QemuRamBlock>& blocks) {
  std::vector<std::uint64_t> addresses;
  for (const RamBlock& block : layout.blocks()) {
    const QemuRamBlock* const there = find_ram_block(blocks, block.name);
    if (there == nullptr || !there->host_address) {
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

Result<QemuMemoryAccess> QemuMemoryAccess::known(const ProcessIdentity& process,
                                                 std::vector<std::uint64_t> block_addresses) {
  PF_ASSIGN(UniqueFd pidfd, open_pidfd(process));
  return QemuMemoryAccess(process.pid, std::move(pidfd), std::move(block_addresses));
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

Result<PageTables> QemuMemoryAccess::page_tables() const {
  PF_ASSIGN(PageTables tables, PageTables::open(pid_));
  // Opened by number: still the QEMU that was probed?
  if (!has_ended(pidfd_, Milliseconds(0))) return tables;
  return fail(Errc::gone, fmt::format("QEMU {} has ended", pid_));
}

Result<void> QemuMemoryAccess::mark_present(const MemoryLayout& layout, SentMap& sent) const {
  PF_ASSIGN(const PageTables tables, page_tables());
  return pageferry::mark_present(tables, layout, block_addresses_, sent);
}

}  // namespace pageferry
