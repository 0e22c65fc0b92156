// Every slot is aligned to 2 MiB in this process, whatever the kind: the address is reserved larger first, and the memory mapped into it.
#include "tools/demo_vmm/vm_memory.h"

#include <fmt/core.h>
#include <sys/mman.h>

#include <cerrno>

namespace pageferry::demo {
namespace {

bool is_shared(MemoryKind kind) {
  return kind == MemoryKind::memfd || kind == MemoryKind::hugetlb;
}

Result<UniqueFd> open_file(MemoryKind kind, std::uint64_t bytes) {
  if (!is_shared(kind)) return UniqueFd();
  const unsigned huge =
      kind == MemoryKind::hugetlb ? MFD_HUGETLB | (21U << 26) : 0U;  // 2^21: 2 MiB
  UniqueFd fd(::memfd_create("demo-vmm", MFD_CLOEXEC | huge));
  if (!fd.valid()) return syscall_error("memfd_create", "guest memory");
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return syscall_error("ftruncate", "guest memory");
  }
  return fd;
}

// Address space of which nothing can be used yet. Null with errno set on failure.
std::byte* reserve_aligned(std::uint64_t bytes) {
  void* const at = ::mmap(nullptr, bytes + kGuestHugeBytes, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return nullptr;
  const auto first = reinterpret_cast<std::uintptr_t>(at);
  const std::uintptr_t aligned = (first + kGuestHugeBytes - 1) / kGuestHugeBytes * kGuestHugeBytes;
  if (aligned != first) ::munmap(at, aligned - first);
  const std::uint64_t behind = kGuestHugeBytes - (aligned - first);
  auto* const result = reinterpret_cast<std::byte*>(aligned);
  if (behind != 0) ::munmap(result + bytes, behind);
  return result;
}

}  // namespace

Result<VmMemory> VmMemory::map(const std::vector<PlannedSlot>& slots, MemoryKind kind) {
  std::uint64_t bytes = 0;
  for (const PlannedSlot& slot : slots) bytes += slot.size_bytes;
  PF_ASSIGN(UniqueFd fd, open_file(kind, bytes));
  VmMemory memory(kind, std::move(fd));
  std::uint64_t offset = 0;
  for (const PlannedSlot& slot : slots) {
    PF_TRY(memory.map_slot(slot, offset));
    offset += slot.size_bytes;
  }
  return memory;
}

Result<void> VmMemory::map_slot(const PlannedSlot& slot, std::uint64_t offset) {
  std::byte* const at = reserve_aligned(slot.size_bytes);
  if (at == nullptr) return syscall_error("mmap", slot.name);
  const int flags = MAP_FIXED | (is_shared(kind_) ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);
  const auto file_offset = is_shared(kind_) ? static_cast<off_t>(offset) : 0;
  if (::mmap(at, slot.size_bytes, PROT_READ | PROT_WRITE, flags, fd_.get(), file_offset) ==
      MAP_FAILED) {
    const int failed = errno;
    ::munmap(at, slot.size_bytes);
    if (failed == ENOMEM && kind_ == MemoryKind::hugetlb) {
      return fail(Errc::no_space, fmt::format("slot {}: {} free 2 MiB pages are needed", slot.name,
                                              slot.size_bytes / kGuestHugeBytes));
    }
    return syscall_error("mmap", slot.name, failed);
  }
  slots_.push_back({slot.name, slot.guest_address, slot.size_bytes, at,
                    static_cast<std::uint64_t>(file_offset)});
  if (kind_ == MemoryKind::anonymous) ::madvise(at, slot.size_bytes, MADV_NOHUGEPAGE);
  if (kind_ == MemoryKind::transparent_huge) ::madvise(at, slot.size_bytes, MADV_HUGEPAGE);
  return {};
}

VmMemory::~VmMemory() {
  for (const MemorySlot& slot : slots_) ::munmap(slot.host_address, slot.size_bytes);
}

std::uint64_t VmMemory::backing_page_bytes() const {
  return kind_ == MemoryKind::hugetlb ? kGuestHugeBytes : kGuestPageBytes;
}

std::byte* VmMemory::at(std::uint64_t guest_address, std::uint64_t bytes) const {
  for (const MemorySlot& slot : slots_) {
    if (guest_address < slot.guest_address) continue;
    const std::uint64_t offset = guest_address - slot.guest_address;
    if (offset < slot.size_bytes && bytes <= slot.size_bytes - offset) {
      return slot.host_address + offset;
    }
  }
  return nullptr;
}

Result<void> VmMemory::give_back(std::uint64_t guest_address, std::uint64_t bytes) const {
  std::byte* const at_host = at(guest_address, bytes);
  PF_CHECK(at_host != nullptr);
  if (bytes == 0 || guest_address % backing_page_bytes() != 0 ||
      bytes % backing_page_bytes() != 0) {
    return fail(Errc::invalid, fmt::format("{} bytes at {:#x} are given back, pages have {} bytes",
                                           bytes, guest_address, backing_page_bytes()));
  }
  // MADV_REMOVE and not FALLOC_FL_PUNCH_HOLE: only the first is told to whoever holds a userfaultfd of this memory.
  const int advice = is_shared(kind_) ? MADV_REMOVE : MADV_DONTNEED;
  while (::madvise(at_host, bytes, advice) != 0) {
    if (errno != EAGAIN && errno != EINTR) {
      return syscall_error("madvise", fmt::format("{} bytes at {:#x}", bytes, guest_address));
    }
  }
  return {};
}

}  // namespace pageferry::demo
