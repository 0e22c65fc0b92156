// A page's block is found by the layout; within a block addresses follow each other.
#include "pager/guest_memory.h"

#include <fmt/format.h>

#include <algorithm>

#include "pager/page_copy.h"

namespace pageferry {
namespace {

std::uintptr_t address_of(const std::byte* bytes) {
  return reinterpret_cast<std::uintptr_t>(bytes);
}

}  // namespace

Result<GuestMemory> GuestMemory::make(const MemoryLayout& layout,
                                      std::vector<const std::byte*> block_addresses) {
  const std::vector<RamBlock>& blocks = layout.blocks();
  if (block_addresses.size() != blocks.size()) {
    return fail(Errc::invalid, fmt::format("{} addresses for {} RAM blocks", block_addresses.size(),
                                           blocks.size()));
  }
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const std::uintptr_t begin = address_of(block_addresses[i]);
    if (begin == 0 || !is_page_aligned(begin) || begin + blocks[i].length_bytes < begin) {
      return fail(Errc::invalid,
                  fmt::format("RAM block '{}' of {} bytes cannot lie at address {:#x}",
                              blocks[i].name, blocks[i].length_bytes, begin));
    }
    for (std::size_t other = 0; other < i; ++other) {
      const std::uintptr_t other_begin = address_of(block_addresses[other]);
      if (begin < other_begin + blocks[other].length_bytes &&
          other_begin < begin + blocks[i].length_bytes) {
        return fail(Errc::invalid,
                    fmt::format("RAM blocks '{}' and '{}' overlap at address {:#x}",
                                blocks[other].name, blocks[i].name, std::max(begin, other_begin)));
      }
    }
  }
  return GuestMemory(layout, std::move(block_addresses));
}

PageRun GuestMemory::within_block(PageRun run) const {
  const RamBlock& block = layout_->blocks()[layout_->block_of(run.first)];
  return {run.first, std::min(run.pages, (block.first_page + block.pages()) - run.first)};
}

std::span<const std::byte> GuestMemory::bytes(PageRun run) const {
  PF_CHECK(raw(run.first) < layout_->pages() && within_block(run) == run);
  const std::size_t number = layout_->block_of(run.first);
  const std::uint64_t offset = bytes_of_pages(run.first - layout_->blocks()[number].first_page);
  return {block_addresses_[number] + offset, bytes_of_pages(run.pages)};
}

void GuestMemory::expect(PageIndex page) const {
  fetch_ahead(bytes({page, 1}).data());
}

Result<std::uint64_t> GuestMemory::put(PageRun run, PageSink& sink) {
  const PageRun piece = within_block(run);
  PF_TRY(sink.put_lent_pages(piece, bytes(piece)));
  return piece.pages;
}

}  // namespace pageferry
