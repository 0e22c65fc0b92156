// Asynchronous: PAGEMAP_SCAN has two ways. Asked for written pages only, it takes a page that is not there for a written one and arms it
// by a marker. Asked for written pages that are present or swapped, it leaves those out and untouched; that is wanted for anonymous
// memory while pages are missing. A file's pages may be swapped out without a trace in the page tables, so that there only the first way
// finds them all.
//
// Synchronous: what is not protected is named, and protected then. Between the two it may be written once more; it is read after both.
#include "pager/restored_write_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <utility>

namespace pageferry {
namespace {

constexpr std::size_t kRestoredRegionsPerScan = 4096;
constexpr std::uint64_t kRestoredEntriesPerRead = 16'384;
constexpr std::string_view kRestoredPagemapPath = "/proc/self/pagemap";

}  // namespace

std::uint64_t RestoredWriteSource::features(Kind kind) {
  const std::uint64_t both = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
  return kind == Kind::asynchronous ? both | kUserfaultWpUnpopulated | kUserfaultWpAsync : both;
}

RestoredWriteSource::RestoredWriteSource(const MemoryLayout& layout, std::vector<Place> places,
                                         int userfault, Kind kind)
    : DirtySource(layout), places_(std::move(places)), userfault_(userfault), kind_(kind) {
  PF_CHECK(places_.size() == layout.blocks().size());
}

Result<void> RestoredWriteSource::begin() {
  if (kind_ == Kind::synchronous) {
    PF_ASSIGN(tables_, PageTables::open(::getpid()));
    return {};
  }
  pagemap_.reset(::open(kRestoredPagemapPath.data(), O_RDONLY | O_CLOEXEC));
  if (!pagemap_.valid()) return syscall_error("open", kRestoredPagemapPath);
  regions_.resize(kRestoredRegionsPerScan);
  return {};
}

Result<void> RestoredWriteSource::fetch(DirtyBitmap& dirty) {
  for (std::size_t i = 0; i < places_.size(); ++i) {
    PF_TRY(kind_ == Kind::asynchronous ? scan_block(i, dirty) : read_block(i, dirty));
  }
  return {};
}

Result<void> RestoredWriteSource::scan_block(std::size_t index, DirtyBitmap& dirty) {
  const RamBlock& block = layout().blocks()[index];
  const std::uint64_t begin = places_[index].address;
  const std::uint64_t end = begin + block.length_bytes;
  const bool only_there = !all_there_ && places_[index].memory == Memory::anonymous;
  for (std::uint64_t at = begin; at < end;) {
    PageScan scan;
    scan.flags = kScanProtectMatching | kScanCheckAsync;
    scan.start = at;
    scan.end = end;
    scan.regions = reinterpret_cast<std::uintptr_t>(regions_.data());
    scan.regions_max = regions_.size();
    scan.categories_all_of = kPageIsWritten;
    scan.categories_any_of = only_there ? kPageIsPresent | kPageIsSwapped : 0;
    scan.categories_returned = kPageIsWritten;
    const int found = ::ioctl(pagemap_.get(), kPageScanCall, &scan);
    if (found < 0) {
      return syscall_error("PAGEMAP_SCAN", fmt::format("{} at {:#x}", block.name, at), errno);
    }
    for (int i = 0; i < found; ++i) {
      const PageRegion& region = regions_[static_cast<std::size_t>(i)];
      dirty.set({.first = block.first_page + pages_of_bytes(region.start - begin),
                 .pages = pages_of_bytes(region.end - region.start)});
    }
    if (scan.walk_end <= at) {
      return fail(Errc::io,
                  fmt::format("PAGEMAP_SCAN of {} stands still at {:#x}", block.name, at));
    }
    at = scan.walk_end;
  }
  return {};
}

// Nothing in the page tables: of anonymous memory there is no page. A file may have one.
bool RestoredWriteSource::is_written(std::uint64_t entry, Memory memory) const {
  if (PageTables::is_write_protected(entry)) return false;
  return PageTables::is_there(entry) || memory == Memory::file;
}

Result<void> RestoredWriteSource::read_block(std::size_t index, DirtyBitmap& dirty) {
  const RamBlock& block = layout().blocks()[index];
  const Place& place = places_[index];
  for (std::uint64_t first = 0; first < block.pages(); first += entries_.size()) {
    entries_.resize(std::min(kRestoredEntriesPerRead, block.pages() - first));
    PF_TRY(tables_->read(place.address + bytes_of_pages(first), entries_));
    for (std::uint64_t i = 0; i < entries_.size();) {
      const std::uint64_t begin = i;
      while (i < entries_.size() && is_written(entries_[i], place.memory)) ++i;
      if (i == begin) {
        ++i;
        continue;
      }
      const PageRun run{.first = block.first_page + (first + begin), .pages = i - begin};
      dirty.set(run);
      PF_TRY(set_protection(place.address + bytes_of_pages(first + begin),
                            bytes_of_pages(run.pages), Protection::on));
    }
  }
  return {};
}

// EAGAIN: the address space is being changed by somebody (a fork, an mremap), who will come to an end.
Result<void> RestoredWriteSource::set_protection(std::uint64_t address, std::uint64_t bytes,
                                                 Protection protection) {
  uffdio_writeprotect request{
      .range = {.start = address, .len = bytes},
      .mode = protection == Protection::on ? UFFDIO_WRITEPROTECT_MODE_WP : __u64{0}};
  while (::ioctl(userfault_, UFFDIO_WRITEPROTECT, &request) != 0) {
    if (errno != EAGAIN && errno != EINTR) {
      Unexpected reason =
          syscall_error("UFFDIO_WRITEPROTECT", fmt::format("{} bytes at {:#x}", bytes, address));
      reason.value().code = Errc::vmm;
      return reason;
    }
    ::sched_yield();
  }
  return {};
}

Result<void> RestoredWriteSource::unprotect_all() {
  for (std::size_t i = 0; i < places_.size(); ++i) {
    PF_TRY(set_protection(places_[i].address, layout().blocks()[i].length_bytes, Protection::off));
  }
  return {};
}

Result<void> RestoredWriteSource::end() {
  pagemap_.reset();
  tables_.reset();
  return {};
}

}  // namespace pageferry
