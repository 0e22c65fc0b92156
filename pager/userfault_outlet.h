// UserfaultOutlet: pages go straight into a VMM's memory, through its userfaultfd (kernel document admin-guide/mm/userfaultfd;
// ioctl_userfaultfd(2)). One copy, from our buffer into the guest's page, by the kernel, which wakes whoever waits for it; a
// page is there as a whole or not at all.
//
//   vCPU touches a missing page --> kernel --> userfaultfd --> read_faults() --> PageIn --> put_pages() --> UFFDIO_COPY
//
// A page that is there already is left as it is, because the guest may have written to it since (EEXIST; a pager before us
// brought it): whoever waits for it is woken. Backing pages larger than a page (hugetlb) are gathered and go in whole.
//
// Where the guest's writes are tracked from its first page on (restored_write_source.h), pages are placed write-protected, and a write that
// waits for its protection to be taken off comes as a message too (synchronous tracking): read_events() answers it.
//
// A VMM may also tell what it removes from its memory (a balloon): read_events() hears of it, BallooningOutlet acts on it.
//
// Thread rule: one thread, the restore loop's. Lifetime: layout outlives it. Closing is safe as long as the VMM holds its own
// descriptor: its guest then waits; the last one to close would turn missing pages into zeros.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page.h"
#include "pager/page_outlet.h"
#include "transport/io_buffer.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "transport/os/page_tables.h"

namespace pageferry {

// What a userfaultfd had to say.
struct UserfaultEvents {
  std::vector<PageRun> faults;  // pages that somebody began to wait for
  std::vector<PageRun>
      removed;  // the VMM gave them back: missing from now on, and zero; whole backing pages
};

// How a block's pages are placed.
enum class Placing : std::uint8_t {
  plain,  // its writes are not tracked
  write_protected,  // but for zeros, which the kernel maps and cannot protect in the same step: anonymous memory
  write_protected_with_zeros,  // zeros are copied: a file, where they take a page anyhow
};

class UserfaultOutlet final : public PageOutlet {
 public:
  // When the address space is changing, nothing can be placed. `wait`: it soon has changed, so it is tried until then. `give_back`: the
  // VMM tells its changes, and they last until they are read; put_* return what was placed until then, and the caller reads events.
  enum class WhenChanging : std::uint8_t { wait, give_back };
  // `block_addresses`: where each block of the layout begins in the VMM's address space, aligned to its backing pages.
  UserfaultOutlet(const MemoryLayout& layout, std::vector<std::uint64_t> block_addresses,
                  WhenChanging when_changing = WhenChanging::wait);

  // `ensured`: a block that the VMM has not registered for missing pages yet is registered. `as_found`: the VMM may be about to
  // complete; what it has unregistered must not be registered again.
  enum class Registration : std::uint8_t { ensured, as_found };
  // Until it has a descriptor it takes nothing. The descriptor must not block. Whoever waits already, for a pager that is gone,
  // asks again. `tables`: the VMM's; needed where backing pages are larger than a page.
  // Errors: busy (the VMM has not finished opening it: again later, with another duplicate), gone, vmm.
  Result<void> open(UniqueFd userfault, std::optional<PageTables> tables,
                    Registration registration = Registration::ensured);
  bool is_open() const { return userfault_.valid(); }
  // Of each block of the layout; without it all are placed plain. Before the first page.
  void place_as(std::vector<Placing> placing);
  // To be watched for input; -1 before open().
  int fd() const { return userfault_.get(); }

  // Appends the pages that somebody began to wait for. Never blocks. Errors: invalid (a fault outside the layout), vmm.
  Result<void> read_faults(std::vector<PageRun>& faults);
  // The same with what the VMM removed, in any part of its memory that is in the layout.
  Result<void> read_events(UserfaultEvents& events);

  // Whoever waits for a page asks again: for a page that another reader of the userfaultfd has heard of and will not bring.
  // Precondition: is_open(). Errors: gone, vmm.
  Result<void> wake_all();
  // Of this run only.
  Result<void> wake(PageRun run);

  // Whoever touches these pages gets SIGBUS, if they are missing (UFFDIO_POISON). `run`: inside one block, whole backing pages. Not
  // `supported`: by this kernel; nothing is changed.
  enum class Poison : std::uint8_t { done, given_back, not_supported };
  Result<Poison> poison(PageRun run);

  // Makes the backing page that holds `page` zero, if it is missing, whatever is gathered meanwhile. False: given back.
  // Precondition: is_open(). Errors: as put_zeros.
  Result<bool> put_zero_backing_page(PageIndex page);
  // Errors: gone (the VMM ended), no_space (no memory for the page), vmm (it cannot be placed there).
  Result<std::uint64_t> put_pages(PageChannel channel, PageRun run,
                                  std::span<const std::byte> bytes) override;
  Result<std::uint64_t> put_zeros(PageChannel channel, PageRun run) override;
  void forget_begun(PageChannel channel) override {
    gathering_[static_cast<std::size_t>(channel)].bytes = 0;
  }

 private:
  // A backing page on its way: its first `bytes` are in `memory`.
  struct Gathering {
    AlignedMemory memory;
    std::uint64_t bytes = 0;
  };
  struct Target {
    std::uint64_t address = 0;
    std::uint64_t backing_page_bytes = kPageSizeBytes;
    Placing placing = Placing::plain;
  };
  Target target_of(PageIndex page) const;
  Result<PageRun> page_at(std::uint64_t address) const;
  void add_removed(std::uint64_t begin, std::uint64_t end, std::vector<PageRun>& removed) const;
  // Bytes that are there now: all, or fewer where they are given back.
  template <typename Attempt>
  Result<std::uint64_t> place(std::string_view call, std::uint64_t address, std::uint64_t bytes,
                              std::uint64_t page_bytes, Attempt attempt);
  Result<std::uint64_t> copy(std::uint64_t address, std::span<const std::byte> bytes,
                             std::uint64_t page_bytes, Placing placing);
  Result<std::uint64_t> place_zeros(std::uint64_t address, std::uint64_t bytes);
  Result<std::uint64_t> copy_zeros(std::uint64_t address, std::uint64_t bytes);
  Result<void> let_write(PageIndex page);
  enum class Next : std::uint8_t { again, skip_page, give_back };
  Result<void> check_is_there(std::uint64_t address, std::uint64_t page_bytes) const;
  Result<Next> after_failure(std::string_view call, std::uint64_t address, std::uint64_t page_bytes,
                             int error);
  Result<void> wake_range(std::uint64_t address, std::uint64_t bytes);
  // False: the last part was given back.
  Result<bool> gather(PageChannel channel, Target target, std::span<const std::byte> bytes,
                      std::uint64_t zero_bytes);

  const MemoryLayout* layout_;
  std::vector<std::uint64_t> block_addresses_;
  std::vector<Placing> placing_;  // by block
  WhenChanging when_changing_;
  UniqueFd userfault_;
  std::optional<PageTables> tables_;    // as long as userfault_, where they were given
  std::array<Gathering, 2> gathering_;  // by channel
  AlignedMemory zeros_;                 // a backing page of them or more, once one was wanted
};

}  // namespace pageferry
