// What the ioctls answer, and what it means (seen on Linux 6.1 to 6.18; the manual page leaves some of it open):
//
//   0                          everything is placed (`copy` says how much that is), waiters are woken
//   EAGAIN, `copy` > 0         that much is placed and woken; go on behind it to learn why
//   EEXIST                     the first page is there; nobody was woken. Or it is a huge page and none is left to take: that
//                              answers the same (seen on 6.18), and the page is not there
//   EAGAIN, `copy` == -EAGAIN  the address space is changing: nothing was placed, ask again, once its events are read
//   ESRCH                      the VMM is gone
//   ENOMEM, ENOSPC             the host, its control group or the memory file has no page left
//   anything else              this memory is not what the VMM said, or not any more
#include "pager/userfault_outlet.h"

#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace pageferry {
namespace {

constexpr std::size_t kFaultsPerRead = 16;
constexpr std::uint64_t kZerosBytes = std::uint64_t{64} << 10;

// <linux/userfaultfd.h> has them from 6.6 on.
struct LinuxUffdioPoison {
  uffdio_range range;
  __u64 mode = 0;
  __s64 updated = 0;
};
constexpr unsigned long kLinuxUffdioPoison = _IOWR(UFFDIO, 0x08, LinuxUffdioPoison);

// Never Errc::io: that would say that a page cannot be proved, and the guest be given up for lost. It only waits.
Unexpected refused(std::string_view call, std::string_view subject, int error) {
  Unexpected reason = syscall_error(call, subject, error);
  reason.value().code = error == ESRCH                       ? Errc::gone
                        : error == ENOMEM || error == ENOSPC ? Errc::no_space
                                                             : Errc::vmm;
  return reason;
}

// Registering what is registered already changes nothing. So it does not matter how far the VMM has come with it.
Result<void> make_registered(const UniqueFd& userfault, const uffdio_range& range) {
  uffdio_register request{.range = range, .mode = UFFDIO_REGISTER_MODE_MISSING, .ioctls = 0};
  if (::ioctl(userfault.get(), UFFDIO_REGISTER, &request) == 0) return {};
  const int error = errno;
  Unexpected reason = refused("UFFDIO_REGISTER", fmt::format("{:#x}", range.start), error);
  // EINVAL: before the VMM's UFFDIO_API, among others. ENOMEM: its memory is gone with it, or the kernel has none.
  if (error == EINVAL) reason.value().code = Errc::busy;
  if (error == ENOMEM) reason.value().code = Errc::gone;
  return reason;
}

}  // namespace

UserfaultOutlet::UserfaultOutlet(const MemoryLayout& layout,
                                 std::vector<std::uint64_t> block_addresses,
                                 WhenChanging when_changing)
    : layout_(&layout),
      block_addresses_(std::move(block_addresses)),
      placing_(layout.blocks().size(), Placing::plain),
      when_changing_(when_changing) {
  PF_CHECK(block_addresses_.size() == layout.blocks().size());
}

void UserfaultOutlet::place_as(std::vector<Placing> placing) {
  PF_CHECK(placing.size() == layout_->blocks().size());
  placing_ = std::move(placing);
}

Result<void> UserfaultOutlet::open(UniqueFd userfault, std::optional<PageTables> tables,
                                   Registration registration) {
  PF_CHECK(userfault.valid() && !is_open());
  for (std::size_t i = 0; i < block_addresses_.size(); ++i) {
    if (registration == Registration::as_found) break;
    const uffdio_range range{.start = block_addresses_[i],
                             .len = layout_->blocks()[i].length_bytes};
    PF_TRY(make_registered(userfault, range));
  }
  userfault_ = std::move(userfault);
  tables_ = std::move(tables);
  return wake_all();
}

Result<void> UserfaultOutlet::wake_all() {
  PF_CHECK(is_open());
  for (std::size_t i = 0; i < block_addresses_.size(); ++i) {
    PF_TRY(wake_range(block_addresses_[i], layout_->blocks()[i].length_bytes));
  }
  return {};
}

Result<void> UserfaultOutlet::wake(PageRun run) {
  PF_CHECK(is_open());
  while (run.pages > 0) {
    const RamBlock& block = layout_->blocks()[layout_->block_of(run.first)];
    const std::uint64_t pages = std::min(run.pages, block.pages() - (run.first - block.first_page));
    PF_TRY(wake_range(target_of(run.first).address, bytes_of_pages(pages)));
    run = {.first = run.first + pages, .pages = run.pages - pages};
  }
  return {};
}

Result<UserfaultOutlet::Poison> UserfaultOutlet::poison(PageRun run) {
  PF_CHECK(is_open());
  const Target target = target_of(run.first);
  const std::uint64_t bytes = bytes_of_pages(run.pages);
  auto placed = place(
      "UFFDIO_POISON", target.address, bytes, target.backing_page_bytes, [&](std::uint64_t done) {
        LinuxUffdioPoison request{.range = {.start = target.address + done, .len = bytes - done}};
        const int answer = ::ioctl(fd(), kLinuxUffdioPoison, &request);
        return answer == 0 || errno == EAGAIN ? std::int64_t{request.updated} : -1;
      });
  if (placed) return *placed == bytes ? Poison::done : Poison::given_back;
  if (placed.error().sys_errno == EINVAL || placed.error().sys_errno == ENOTTY) {
    return Poison::not_supported;
  }
  return tl::make_unexpected(std::move(placed).error());
}

UserfaultOutlet::Target UserfaultOutlet::target_of(PageIndex page) const {
  const std::size_t index = layout_->block_of(page);
  const RamBlock& block = layout_->blocks()[index];
  return {.address = block_addresses_[index] + bytes_of_pages(page - block.first_page),
          .backing_page_bytes = block.backing_page_bytes,
          .placing = placing_[index]};
}

Result<PageRun> UserfaultOutlet::page_at(std::uint64_t address) const {
  for (std::size_t i = 0; i < block_addresses_.size(); ++i) {
    const RamBlock& block = layout_->blocks()[i];
    if (address < block_addresses_[i] || address - block_addresses_[i] >= block.length_bytes)
      continue;
    return PageRun{.first = block.first_page + pages_of_bytes(address - block_addresses_[i]),
                   .pages = 1};
  }
  return fail(Errc::invalid,
              fmt::format("a page fault at {:#x}, which is in no RAM block", address));
}

// A removal may be larger than one block, or concern memory that is none of ours.
void UserfaultOutlet::add_removed(std::uint64_t begin, std::uint64_t end,
                                  std::vector<PageRun>& removed) const {
  for (std::size_t i = 0; i < block_addresses_.size(); ++i) {
    const RamBlock& block = layout_->blocks()[i];
    const std::uint64_t block_begin = block_addresses_[i];
    const std::uint64_t from = std::max(begin, block_begin);
    const std::uint64_t to = std::min(end, block_begin + block.length_bytes);
    if (from >= to) continue;
    const std::uint64_t unit = block.backing_page_bytes;
    const std::uint64_t first = (from - block_begin) / unit * unit;
    const std::uint64_t last = (to - block_begin + unit - 1) / unit * unit;
    removed.push_back(
        {.first = block.first_page + pages_of_bytes(first), .pages = pages_of_bytes(last - first)});
  }
}

Result<void> UserfaultOutlet::read_faults(std::vector<PageRun>& faults) {
  UserfaultEvents events;
  auto read = read_events(events);
  faults.insert(faults.end(), events.faults.begin(), events.faults.end());
  return read;
}

Result<void> UserfaultOutlet::read_events(UserfaultEvents& events) {
  if (!is_open()) return {};
  std::array<uffd_msg, kFaultsPerRead> messages;
  for (;;) {
    const ssize_t got = ::read(fd(), messages.data(), sizeof messages);
    if (got < 0 && errno == EINTR) continue;
    // Another reader of the same descriptor may have been faster.
    if (got < 0 && errno == EAGAIN) return {};
    if (got < 0) return refused("read", "userfaultfd", errno);
    const std::size_t count = static_cast<std::size_t>(got) / sizeof(uffd_msg);
    for (std::size_t i = 0; i < count; ++i) {
      const uffd_msg& message = messages[i];
      if (message.event == UFFD_EVENT_REMOVE || message.event == UFFD_EVENT_UNMAP) {
        add_removed(message.arg.remove.start, message.arg.remove.end, events.removed);
      }
      if (message.event != UFFD_EVENT_PAGEFAULT) continue;
      PF_ASSIGN(const PageRun page, page_at(message.arg.pagefault.address));
      if ((message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0) {
        PF_TRY(let_write(page.first));
        continue;
      }
      events.faults.push_back(page);
    }
    if (count < messages.size()) return {};
  }
}

Result<std::uint64_t> UserfaultOutlet::put_pages(PageChannel channel, PageRun run,
                                                 std::span<const std::byte> bytes) {
  if (!is_open()) return 0;
  const Target target = target_of(run.first);
  bytes = bytes.first(bytes_of_pages(run.pages));
  if (target.backing_page_bytes == kPageSizeBytes) {
    PF_ASSIGN(const std::uint64_t placed,
              copy(target.address, bytes, kPageSizeBytes, target.placing));
    return pages_of_bytes(placed);
  }
  PF_ASSIGN(const bool taken, gather(channel, target, bytes, 0));
  return taken ? run.pages : 0;
}

Result<std::uint64_t> UserfaultOutlet::put_zeros(PageChannel channel, PageRun run) {
  if (!is_open()) return 0;
  const Target target = target_of(run.first);
  if (target.backing_page_bytes == kPageSizeBytes) {
    const std::uint64_t bytes = bytes_of_pages(run.pages);
    PF_ASSIGN(const std::uint64_t placed, target.placing == Placing::write_protected_with_zeros
                                              ? copy_zeros(target.address, bytes)
                                              : place_zeros(target.address, bytes));
    return pages_of_bytes(placed);
  }
  PF_ASSIGN(const bool taken, gather(channel, target, {}, bytes_of_pages(run.pages)));
  return taken ? run.pages : 0;
}

Result<std::uint64_t> UserfaultOutlet::copy_zeros(std::uint64_t address, std::uint64_t bytes) {
  if (zeros_.size() < kZerosBytes) {
    PF_ASSIGN(zeros_, AlignedMemory::map(kZerosBytes));
  }
  std::uint64_t done = 0;
  while (done < bytes) {
    const std::uint64_t piece = std::min(bytes - done, kZerosBytes);
    PF_ASSIGN(const std::uint64_t placed,
              copy(address + done, std::span<const std::byte>(zeros_.data(), piece), kPageSizeBytes,
                   Placing::write_protected_with_zeros));
    done += placed;
    if (placed < piece) break;
  }
  return done;
}

// Whoever waits is woken in any case: while the address space is changing it asks again.
Result<void> UserfaultOutlet::let_write(PageIndex page) {
  const std::uint64_t address = target_of(page).address;
  uffdio_writeprotect request{.range = {.start = address, .len = kPageSizeBytes}, .mode = 0};
  if (::ioctl(fd(), UFFDIO_WRITEPROTECT, &request) == 0) return {};
  if (errno != EAGAIN && errno != EINTR) {
    return refused("UFFDIO_WRITEPROTECT", fmt::format("page at {:#x} of the VMM", address), errno);
  }
  return wake_range(address, kPageSizeBytes);
}

// What was removed is not what the image has: it counts as written. The kernel has no zero pages for hugetlb: they are copied.
Result<bool> UserfaultOutlet::put_zero_backing_page(PageIndex page) {
  PF_CHECK(is_open());
  const Target target = target_of(page);
  const std::uint64_t unit = target.backing_page_bytes;
  std::uint64_t placed = 0;
  if (unit == kPageSizeBytes) {
    PF_ASSIGN(placed, place_zeros(target.address, unit));
  } else {
    if (zeros_.size() < unit) {
      PF_ASSIGN(zeros_, AlignedMemory::map(unit));
    }
    const std::span zeros(zeros_.data(), unit);
    PF_ASSIGN(placed, copy(target.address - target.address % unit, zeros, unit, Placing::plain));
  }
  return placed == unit;
}

// `attempt(done)` makes one call for what lies behind the first `done` bytes, and returns what the kernel says that it placed.
template <typename Attempt>
Result<std::uint64_t> UserfaultOutlet::place(std::string_view call, std::uint64_t address,
                                             std::uint64_t bytes, std::uint64_t page_bytes,
                                             Attempt attempt) {
  std::uint64_t done = 0;
  while (done < bytes) {
    const std::int64_t placed = attempt(done);
    if (placed > 0) {
      done += static_cast<std::uint64_t>(placed);
      continue;
    }
    PF_ASSIGN(const Next next, after_failure(call, address + done, page_bytes, errno));
    if (next == Next::give_back) break;
    if (next == Next::skip_page) done += page_bytes;
  }
  return done;
}

Result<std::uint64_t> UserfaultOutlet::copy(std::uint64_t address, std::span<const std::byte> bytes,
                                            std::uint64_t page_bytes, Placing placing) {
  const __u64 mode = placing == Placing::plain ? __u64{0} : __u64{UFFDIO_COPY_MODE_WP};
  return place("UFFDIO_COPY", address, bytes.size(), page_bytes, [&](std::uint64_t done) {
    uffdio_copy request{.dst = address + done,
                        .src = reinterpret_cast<std::uintptr_t>(bytes.data() + done),
                        .len = bytes.size() - done,
                        .mode = mode,
                        .copy = 0};
    ::ioctl(fd(), UFFDIO_COPY, &request);
    return request.copy;
  });
}

Result<std::uint64_t> UserfaultOutlet::place_zeros(std::uint64_t address, std::uint64_t bytes) {
  return place("UFFDIO_ZEROPAGE", address, bytes, kPageSizeBytes, [&](std::uint64_t done) {
    uffdio_zeropage request{
        .range = {.start = address + done, .len = bytes - done}, .mode = 0, .zeropage = 0};
    ::ioctl(fd(), UFFDIO_ZEROPAGE, &request);
    return request.zeropage;
  });
}

Result<UserfaultOutlet::Next> UserfaultOutlet::after_failure(std::string_view call,
                                                             std::uint64_t address,
                                                             std::uint64_t page_bytes, int error) {
  if (error == EINTR) return Next::again;
  if (error == EAGAIN) {
    if (when_changing_ == WhenChanging::give_back) return Next::give_back;
    ::sched_yield();
    return Next::again;
  }
  if (error == EEXIST) {
    PF_TRY(check_is_there(address, page_bytes));
    PF_TRY(wake_range(address, page_bytes));
    return Next::skip_page;
  }
  return refused(call, fmt::format("page at {:#x} of the VMM", address), error);
}

// A page that is taken to be there and is not would read as zeros in the end.
Result<void> UserfaultOutlet::check_is_there(std::uint64_t address,
                                             std::uint64_t page_bytes) const {
  if (page_bytes == kPageSizeBytes) return {};
  PF_CHECK(tables_.has_value());
  PF_ASSIGN(const bool there, tables_->has(address));
  if (there) return {};
  return fail(Errc::no_space, fmt::format("no huge page of {} bytes is left for the one at {:#x}",
                                          page_bytes, address));
}

Result<void> UserfaultOutlet::wake_range(std::uint64_t address, std::uint64_t bytes) {
  uffdio_range range{.start = address, .len = bytes};
  if (::ioctl(fd(), UFFDIO_WAKE, &range) == 0) return {};
  return refused("UFFDIO_WAKE", fmt::format("{:#x}", address), errno);
}

// Takes the next part of a backing page: `bytes`, or `zero_bytes` zeros. They come in order and without others in between
// (PageIn, I4).
Result<bool> UserfaultOutlet::gather(PageChannel channel, Target target,
                                     std::span<const std::byte> bytes, std::uint64_t zero_bytes) {
  Gathering& gathering = gathering_[static_cast<std::size_t>(channel)];
  if (gathering.memory.size() < target.backing_page_bytes) {
    PF_ASSIGN(gathering.memory, AlignedMemory::map(target.backing_page_bytes));
  }
  const std::uint64_t offset = target.address % target.backing_page_bytes;
  PF_CHECK(offset == gathering.bytes);
  PF_CHECK(offset + bytes.size() + zero_bytes <= target.backing_page_bytes);
  std::byte* const to = gathering.memory.data() + offset;
  if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
  std::memset(to + bytes.size(), 0, zero_bytes);
  gathering.bytes += bytes.size() + zero_bytes;
  if (gathering.bytes < target.backing_page_bytes) return true;
  const std::span whole(gathering.memory.data(), target.backing_page_bytes);
  PF_ASSIGN(const std::uint64_t placed,
            copy(target.address - offset, whole, target.backing_page_bytes, Placing::plain));
  const bool is_there = placed == target.backing_page_bytes;
  gathering.bytes = is_there ? 0 : offset;
  return is_there;
}

}  // namespace pageferry
