// Whether a page is there is asked of whoever knows: of a memory file its holes (a page may be in the file and not in our page tables, and
// swapped pages count), of anonymous memory and huge pages the page tables.
//
// Registered first, then looked at: a page that came in between would be there without anybody's placing it.
#include "tools/vmm_hook/incoming_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <vector>

#include "pager/userfault_open.h"
#include "transport/os/clock.h"

namespace pageferry {
namespace {

constexpr std::size_t kEntriesPerRead = 8192;
// How often a pager may place a page between our hole and our zeros. One that is right does it once.
constexpr int kAttemptsMax = 1000;
// How long the VMM may take from a hole to its report, and how often that is looked at.
constexpr Milliseconds kReportOfHoleBound{1000};
// All of them together: the pager gives up after 30 s.
constexpr Seconds kReportsOfHolesBound{10};
constexpr int kLookAtHoleIntervalMs = 1;

std::uint64_t features_for(const HookConfig& config) {
  std::uint64_t features = 0;
  for (const auto& slot : config.slots) {
    if (slot.backing_page_bytes != kPageSizeBytes) features |= UFFD_FEATURE_MISSING_HUGETLBFS;
    if (slot.has_memory) features |= UFFD_FEATURE_MISSING_SHMEM;
  }
  return features;
}

}  // namespace

// Without tracking where the kernel or the memory has none.
Result<std::unique_ptr<IncomingMemory>> IncomingMemory::prepare(const HookConfig& config,
                                                                Tracking wanted) {
  std::unique_ptr<IncomingMemory> memory(new IncomingMemory(config));
  PF_ASSIGN(memory->tables_, PageTables::open(::getpid()));
  if (!wanted || !memory->register_all(wanted)) {
    PF_TRY(memory->register_all(std::nullopt));
  }
  std::uint64_t largest = 0;
  for (const auto& slot : config.slots) largest = std::max(largest, slot.backing_page_bytes);
  PF_TRY(memory->check_untouched());
  PF_ASSIGN(memory->zeros_, AlignedMemory::map(largest));
  return memory;
}

IncomingMemory::~IncomingMemory() {
  holes_.reset();
  // A child that was forked may have the descriptor, too.
  if (tracking_ && !missing_.load()) static_cast<void>(unregister_all());
}

// Opening another one closes that before, which ends what it had registered.
Result<void> IncomingMemory::register_all(Tracking tracking) {
  const std::uint64_t more = tracking ? RestoredWriteSource::features(*tracking) : 0;
  PF_ASSIGN(userfault_,
            open_userfault(KernelFaults::answered_by_us, features_for(*config_) | more));
  const std::uint64_t mode = tracking ? UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP
                                      : UFFDIO_REGISTER_MODE_MISSING;
  for (std::size_t i = 0; i < config_->slots.size(); ++i) PF_TRY(register_slot(i, mode));
  tracking_ = tracking;
  return {};
}

Result<void> IncomingMemory::register_slot(std::size_t index, std::uint64_t mode) {
  const auto& slot = config_->slots[index];
  uffdio_register request{
      .range = {.start = slot.host_address, .len = slot.size_bytes}, .mode = mode, .ioctls = 0};
  if (::ioctl(userfault_.get(), UFFDIO_REGISTER, &request) == 0) return {};
  Unexpected reason =
      syscall_error("UFFDIO_REGISTER for missing pages", fmt::format("slot '{}'", slot.name));
  const int error = reason.value().sys_errno;
  reason.value().code = error == EBUSY    ? Errc::busy
                        : error == EINVAL ? Errc::unsupported
                                          : Errc::io;
  return reason;
}

Result<void> IncomingMemory::check_untouched() const {
  for (std::size_t i = 0; i < config_->slots.size(); ++i) {
    const auto& slot = config_->slots[i];
    PF_ASSIGN(const auto there, find(i, Wanted::there));
    if (there) {
      return fail(Errc::invalid,
                  fmt::format("slot '{}': there is a page at {:#x} already, the memory of an "
                              "incoming VMM must be untouched",
                              slot.name, slot.guest_address + *there));
    }
    // Pages that were only reserved (fallocate) are no data, but would read as zeros without being missing.
    struct stat status {};
    if (!slot.has_memory || ::fstat(config_->memory[i].for_hook.get(), &status) != 0) continue;
    if (status.st_blocks == 0 || static_cast<std::uint64_t>(status.st_size) != slot.size_bytes) {
      continue;
    }
    return fail(Errc::invalid, fmt::format("slot '{}': its file has {} blocks already, the memory "
                                           "of an incoming VMM must be untouched",
                                           slot.name, status.st_blocks));
  }
  return {};
}

Result<std::optional<std::uint64_t>> IncomingMemory::find(std::size_t slot, Wanted wanted,
                                                          std::uint64_t from) const {
  const bool file_knows =
      config_->slots[slot].has_memory && config_->slots[slot].backing_page_bytes == kPageSizeBytes;
  return file_knows ? find_in_file(slot, wanted, from) : find_in_tables(slot, wanted, from);
}

Result<std::optional<std::uint64_t>> IncomingMemory::find_in_file(std::size_t index, Wanted wanted,
                                                                  std::uint64_t from) const {
  const auto& slot = config_->slots[index];
  const auto begin = static_cast<off_t>(slot.memory_offset_bytes);
  const off_t found =
      ::lseek(config_->memory[index].for_hook.get(), begin + static_cast<off_t>(from),
              wanted == Wanted::there ? SEEK_DATA : SEEK_HOLE);
  if (found < 0 && errno == ENXIO) return std::nullopt;  // no data behind it
  if (found < 0) return syscall_error("lseek", fmt::format("slot '{}'", slot.name));
  const auto offset = static_cast<std::uint64_t>(found - begin);
  if (offset >= slot.size_bytes) return std::nullopt;
  return offset;
}

Result<std::optional<std::uint64_t>> IncomingMemory::find_in_tables(std::size_t index,
                                                                    Wanted wanted,
                                                                    std::uint64_t from) const {
  const auto& slot = config_->slots[index];
  const std::uint64_t pages = pages_of_bytes(slot.size_bytes);
  std::vector<std::uint64_t> entries;
  for (std::uint64_t first = pages_of_bytes(from); first < pages; first += entries.size()) {
    entries.resize(std::min<std::uint64_t>(pages - first, kEntriesPerRead));
    PF_TRY(tables_->read(slot.host_address + bytes_of_pages(first), entries));
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (PageTables::is_there(entries[i]) != (wanted == Wanted::there)) continue;
      return bytes_of_pages(first + i);
    }
  }
  return std::nullopt;
}

std::uint64_t IncomingMemory::bytes_there() const {
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < config_->slots.size(); ++i) {
    struct stat status {};
    const auto& slot = config_->slots[i];
    if (slot.has_memory) {
      if (::fstat(config_->memory[i].for_hook.get(), &status) != 0) continue;
      bytes += static_cast<std::uint64_t>(status.st_blocks) * 512;
      continue;
    }
    std::vector<std::uint64_t> entries(pages_of_bytes(slot.size_bytes));
    if (!tables_->read(slot.host_address, entries)) continue;
    bytes += bytes_of_pages(static_cast<std::uint64_t>(
        std::ranges::count_if(entries, [](auto entry) { return PageTables::is_there(entry); })));
  }
  return bytes;
}

// A page that is given back is missing from the VMM's hole until the zeros of its report, which come soon.
Result<void> IncomingMemory::wait_until_whole(std::size_t index, const Deadline& all_slots) const {
  const auto& slot = config_->slots[index];
  const MonotonicClock clock;
  std::optional<std::uint64_t> waits_for;
  Deadline deadline = Deadline::never();
  for (std::uint64_t from = 0;;) {
    PF_ASSIGN(const auto missing, find(index, Wanted::missing, from));
    if (!missing) return {};
    if (waits_for != missing) deadline = Deadline::after(clock, kReportOfHoleBound);
    waits_for = missing;
    if (deadline.passed() || all_slots.passed()) {
      return fail(Errc::vmm, fmt::format("slot '{}': the page at {:#x} is missing", slot.name,
                                         slot.guest_address + *missing));
    }
    from = *missing;
    ::poll(nullptr, 0, kLookAtHoleIntervalMs);
  }
}

// A hole that is made after the look reads as zeros, registered or not. So looking need not keep it away.
Result<void> IncomingMemory::finish() {
  const MonotonicClock clock;
  const Deadline bound = Deadline::after(clock, kReportsOfHolesBound);
  for (std::size_t i = 0; i < config_->slots.size(); ++i) PF_TRY(wait_until_whole(i, bound));
  const std::lock_guard lock(closing_);
  if (tracking_) {
    std::vector<HoleService::Range> ranges;
    for (const auto& slot : config_->slots) ranges.push_back({slot.host_address, slot.size_bytes});
    PF_ASSIGN(holes_, HoleService::start(userfault_.get(), ranges));
  } else {
    PF_TRY(unregister_all());
  }
  missing_.store(false);
  return {};
}

Result<void> IncomingMemory::unregister_all() {
  for (const auto& slot : config_->slots) {
    uffdio_range range{.start = slot.host_address, .len = slot.size_bytes};
    if (::ioctl(userfault_.get(), UFFDIO_UNREGISTER, &range) != 0) {
      return syscall_error("UFFDIO_UNREGISTER", fmt::format("slot '{}'", slot.name));
    }
  }
  return {};
}

void IncomingMemory::close_if_done() {
  if (tracking_) return;
  const std::lock_guard lock(closing_);
  userfault_.reset();
}

Result<void> IncomingMemory::missing_into(DirtyBitmap& missing) const {
  for (std::size_t i = 0; i < config_->slots.size(); ++i) {
    const auto& slot = config_->slots[i];
    const bool file_knows = slot.has_memory && slot.backing_page_bytes == kPageSizeBytes;
    PF_TRY(file_knows ? add_holes(i, missing) : add_missing(i, missing));
  }
  return {};
}

Result<void> IncomingMemory::add_holes(std::size_t index, DirtyBitmap& missing) const {
  const auto& slot = config_->slots[index];
  const PageIndex first = config_->layout.blocks()[index].first_page;
  const int file = config_->memory[index].for_hook.get();
  for (std::uint64_t at = 0; at < slot.size_bytes;) {
    const auto seek = [&](int whence) -> Result<std::uint64_t> {
      const off_t found = ::lseek(file, static_cast<off_t>(slot.memory_offset_bytes + at), whence);
      if (found < 0 && errno == ENXIO) return slot.size_bytes;  // no data behind it
      if (found < 0) return syscall_error("lseek", fmt::format("slot '{}'", slot.name));
      return std::min(static_cast<std::uint64_t>(found) - slot.memory_offset_bytes,
                      slot.size_bytes);
    };
    PF_ASSIGN(const std::uint64_t hole, seek(SEEK_HOLE));
    at = hole;
    if (at >= slot.size_bytes) return {};
    PF_ASSIGN(const std::uint64_t data, seek(SEEK_DATA));
    missing.set({first + pages_of_bytes(hole), pages_of_bytes(data - hole)});
    at = data;
  }
  return {};
}

Result<void> IncomingMemory::add_missing(std::size_t index, DirtyBitmap& missing) const {
  const auto& slot = config_->slots[index];
  const PageIndex begin = config_->layout.blocks()[index].first_page;
  const std::uint64_t pages = pages_of_bytes(slot.size_bytes);
  std::vector<std::uint64_t> entries;
  for (std::uint64_t first = 0; first < pages; first += entries.size()) {
    entries.resize(std::min<std::uint64_t>(pages - first, kEntriesPerRead));
    PF_TRY(tables_->read(slot.host_address + bytes_of_pages(first), entries));
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (!PageTables::is_there(entries[i])) missing.set({begin + (first + i), 1});
    }
  }
  return {};
}

// What the kernel says that it placed, or a negative number.
std::int64_t IncomingMemory::place_zeros(std::uint64_t address, std::uint64_t bytes,
                                         std::uint64_t unit) {
  if (unit == kPageSizeBytes) {
    uffdio_zeropage request{.range = {.start = address, .len = bytes}, .mode = 0, .zeropage = 0};
    ::ioctl(userfault_.get(), UFFDIO_ZEROPAGE, &request);
    return request.zeropage;
  }
  uffdio_copy request{.dst = address,
                      .src = reinterpret_cast<std::uintptr_t>(zeros_.data()),
                      .len = unit,
                      .mode = 0,
                      .copy = 0};
  ::ioctl(userfault_.get(), UFFDIO_COPY, &request);
  return request.copy;
}

Result<void> IncomingMemory::make_hole(std::size_t index, std::uint64_t offset_bytes,
                                       std::uint64_t bytes) const {
  const auto& slot = config_->slots[index];
  int done = 0;
  if (slot.has_memory) {
    done = ::fallocate(
        config_->memory[index].memory.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
        static_cast<off_t>(slot.memory_offset_bytes + offset_bytes), static_cast<off_t>(bytes));
  } else {
    void* const at = reinterpret_cast<void*>(slot.host_address + offset_bytes);
    done = ::madvise(at, bytes, MADV_DONTNEED);
  }
  if (done == 0) return {};
  return syscall_error("making a hole", fmt::format("slot '{}' at {:#x}", slot.name,
                                                    slot.guest_address + offset_bytes));
}

Result<void> IncomingMemory::make_zero(std::size_t index, std::uint64_t offset_bytes,
                                       std::uint64_t bytes) {
  const auto& slot = config_->slots[index];
  const std::lock_guard lock(closing_);
  if (!missing_.load()) return {};
  int attempts = 0;
  for (std::uint64_t done = 0; done < bytes;) {
    const std::uint64_t at = offset_bytes + done;
    const std::int64_t placed =
        place_zeros(slot.host_address + at, bytes - done, slot.backing_page_bytes);
    if (placed > 0) {
      done += static_cast<std::uint64_t>(placed);
      attempts = 0;
      continue;
    }
    const int error = placed < 0 ? static_cast<int>(-placed) : errno;
    if (++attempts > kAttemptsMax || (error != EEXIST && error != EAGAIN && error != EINTR)) {
      return syscall_error("placing zeros",
                           fmt::format("slot '{}' at {:#x}", slot.name, slot.guest_address + at),
                           error);
    }
    if (error == EEXIST) {
      PF_TRY(make_hole(index, at, slot.backing_page_bytes));
    } else {
      ::sched_yield();
    }
  }
  return {};
}

}  // namespace pageferry
