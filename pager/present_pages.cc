// Only what is shown as present counts. "Swapped out" is also what markers look like that stand where no page is (armed write protection,
// poison): who took such a page for one that is there would let its guest wait for ever.
#include "pager/present_pages.h"

#include <algorithm>
#include <vector>

namespace pageferry {
namespace {

constexpr std::uint64_t kEntriesPerRead = std::uint64_t{64} << 10;

Result<void> mark_block(const PageTables& tables, const RamBlock& block, std::uint64_t address,
                        SentMap& sent) {
  const std::uint64_t unit = pages_of_bytes(block.backing_page_bytes);
  std::vector<std::uint64_t> entries(std::min(kEntriesPerRead, block.pages()));
  for (std::uint64_t page = 0; page < block.pages(); page += unit) {
    const std::uint64_t in_buffer = page % kEntriesPerRead;
    if (in_buffer == 0) {
      const std::uint64_t count = std::min(kEntriesPerRead, block.pages() - page);
      PF_TRY(tables.read(address + bytes_of_pages(page), std::span(entries).first(count)));
    }
    const PageRun run{.first = block.first_page + page, .pages = unit};
    if (!PageTables::is_present(entries[in_buffer])) continue;
    if (sent.state(run.first) == PageState::absent) sent.mark_received(run);
  }
  return {};
}

}  // namespace

Result<void> mark_present(const PageTables& tables, const MemoryLayout& layout,
                          std::span<const std::uint64_t> addresses, SentMap& sent) {
  for (std::size_t i = 0; i < addresses.size(); ++i) {
    PF_TRY(mark_block(tables, layout.blocks()[i], addresses[i], sent));
  }
  return {};
}

}  // namespace pageferry
