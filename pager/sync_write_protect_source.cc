// Invariants:
//   I1  a page that is not protected stands in unprotected_. It is noted before the protection goes, and taken out before the
//       protection comes back
//   I2  both of these pairs of steps happen under the lock. Otherwise a collection could take the note and protect the page
//       between the two steps of our thread, which would then take the protection off a page that nobody has a note of
//
// The lock is held for one message, or for one piece of a collection (kPagesPerPiece), so that writers wait shortly.
//
// A hole in anonymous memory takes the protection along. Whoever makes one says discard(), and the page is protected anew by the
// next collection; until then it is dirty anyway.
#include "pager/sync_write_protect_source.h"

#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>
#include <utility>

#include "pager/linux_page_tracking.h"
#include "transport/os/signals_blocked.h"

namespace pageferry {
namespace {

constexpr std::size_t kMessagesPerRead = 16;
constexpr std::uint64_t kPagesPerPiece = 16'384;
constexpr std::uint64_t kSyncFeatures =
    UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

#ifndef MADV_POPULATE_READ  // 5.14; not in glibc's header of every Debian 12
constexpr int kPopulateRead = 22;
#else
constexpr int kPopulateRead = MADV_POPULATE_READ;
#endif

Result<void> populate(WriteProtectedMemory::Range range) {
  void* const at = reinterpret_cast<void*>(range.address);
  while (::madvise(at, range.bytes, kPopulateRead) != 0) {
    if (errno != EINTR && errno != EAGAIN) {
      return syscall_error("madvise to populate", fmt::format("{:#x}", range.address));
    }
    ::sched_yield();
  }
  return {};
}

}  // namespace

SyncWriteProtectSource::SyncWriteProtectSource(const MemoryLayout& layout,
                                               std::vector<std::uint64_t> block_addresses,
                                               AbsentPages absent_pages)
    : DirtySource(layout),
      block_addresses_(std::move(block_addresses)),
      absent_pages_(absent_pages),
      unprotected_(layout.pages()) {
  PF_CHECK(block_addresses_.size() == layout.blocks().size());
}

Result<void> SyncWriteProtectSource::begin() {
  stop_event_.reset(::eventfd(0, EFD_CLOEXEC));
  if (!stop_event_.valid()) return syscall_error("eventfd", "of dirty tracking");
  PF_ASSIGN(const std::uint64_t has, userfault_features());
  populate_ = absent_pages_ == AbsentPages::populated || (has & kUserfaultWpUnpopulated) == 0;
  PF_ASSIGN(memory_,
            WriteProtectedMemory::make(layout(), block_addresses_,
                                       kSyncFeatures | (populate_ ? 0 : kUserfaultWpUnpopulated),
                                       KernelFaults::answered_by_us));
  failure_.reset();
  unprotected_.mark_all();
  const SignalsBlocked none_for_the_thread;
  try {
    thread_ = std::thread([this] { serve(); });
  } catch (const std::system_error& error) {
    memory_.reset();
    return fail(Errc::no_space, fmt::format("no thread for dirty tracking: {}", error.what()));
  }
  return {};
}

void SyncWriteProtectSource::discard(PageRun run) {
  DirtySource::discard(run);
  unprotected_.mark(run);
}

Result<void> SyncWriteProtectSource::fetch(DirtyBitmap& dirty) {
  auto fetched = fetch_all(dirty);
  // Notes were taken of pages that are not protected: I1.
  if (!fetched) unprotected_.mark_all();
  return fetched;
}

Result<void> SyncWriteProtectSource::fetch_all(DirtyBitmap& dirty) {
  DirtyBitmap taken(layout().pages());
  PageIndex at{0};
  while (raw(at) < layout().pages()) {
    const RamBlock& block = layout().blocks()[layout().block_of(at)];
    const PageIndex block_end = block.first_page + block.pages();
    const PageRun piece{.first = at, .pages = std::min(block_end - at, kPagesPerPiece)};
    at = piece.first + piece.pages;
    const std::lock_guard lock(protection_);
    if (failure_) return tl::make_unexpected(*failure_);
    unprotected_.take_into(taken, piece);
    for (PageIndex from = piece.first; raw(from) < raw(at);) {
      const auto run = taken.next_run(from, at - from);
      if (!run || raw(run->first) >= raw(at)) break;
      const PageRun inside{.first = run->first, .pages = std::min(run->pages, at - run->first)};
      PF_TRY(protect(inside));
      dirty.set(inside);
      from = inside.first + inside.pages;
    }
  }
  return {};
}

// Precondition: the run lies in one block.
Result<void> SyncWriteProtectSource::protect(PageRun run) const {
  const std::size_t index = layout().block_of(run.first);
  const std::uint64_t offset = bytes_of_pages(run.first - layout().blocks()[index].first_page);
  const WriteProtectedMemory::Range range{.address = block_addresses_[index] + offset,
                                          .bytes = bytes_of_pages(run.pages)};
  if (populate_) {
    PF_TRY(populate(range));
  }
  return memory_->protect(range);
}

void SyncWriteProtectSource::serve() {
  std::array<pollfd, 2> entries = {
      pollfd{.fd = memory_->descriptor(), .events = POLLIN, .revents = 0},
      pollfd{.fd = stop_event_.get(), .events = POLLIN, .revents = 0}};
  for (;;) {
    if (::poll(entries.data(), entries.size(), -1) < 0 && errno != EINTR) {
      const std::lock_guard lock(protection_);
      failure_ = syscall_error("poll", "userfaultfd of dirty tracking").value();
      return;
    }
    if (entries[1].revents != 0) return;
    if (auto served = serve_messages(); !served) {
      const std::lock_guard lock(protection_);
      failure_ = std::move(served).error();
    }
  }
}

Result<void> SyncWriteProtectSource::serve_messages() {
  std::array<uffd_msg, kMessagesPerRead> messages;
  const ssize_t got = ::read(memory_->descriptor(), messages.data(), sizeof messages);
  if (got < 0 && (errno == EINTR || errno == EAGAIN)) return {};
  if (got < 0) return syscall_error("read", "userfaultfd of dirty tracking");
  const std::size_t count = static_cast<std::size_t>(got) / sizeof(uffd_msg);
  Result<void> result;
  for (std::size_t i = 0; i < count; ++i) {
    if (messages[i].event != UFFD_EVENT_PAGEFAULT) continue;
    auto served = let_write(messages[i].arg.pagefault.address);
    if (!served) result = std::move(served);
  }
  return result;
}

Result<void> SyncWriteProtectSource::let_write(std::uint64_t address) {
  for (std::size_t i = 0; i < block_addresses_.size(); ++i) {
    const RamBlock& block = layout().blocks()[i];
    const std::uint64_t begin = block_addresses_[i];
    if (address < begin || address - begin >= block.length_bytes) continue;
    const std::uint64_t page = pages_of_bytes(address - begin);
    const std::lock_guard lock(protection_);
    unprotected_.mark({.first = block.first_page + page, .pages = 1});
    return memory_->unprotect({.address = begin + bytes_of_pages(page), .bytes = kPageSizeBytes});
  }
  return fail(Errc::invalid,
              fmt::format("a write fault at {:#x}, which is in no RAM block", address));
}

// The thread answers what it has read before it ends; whoever waits with a message that nobody has read is woken by release().
Result<void> SyncWriteProtectSource::end() {
  constexpr std::uint64_t kOnce = 1;
  PF_CHECK(::write(stop_event_.get(), &kOnce, sizeof kOnce) == sizeof kOnce);
  thread_.join();
  Result<void> released = memory_->release();
  memory_.reset();
  stop_event_.reset();
  return released;
}

}  // namespace pageferry
