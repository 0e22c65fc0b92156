// Renumbering is an addition in each region. A read keeps the number that it was asked by.
#include "pager/region_supply.h"

#include <algorithm>
#include <utility>

namespace pageferry {

RegionSupply::RegionSupply(PageSupply& source, const MemoryLayout& layout,
                           std::vector<PageIndex> source_pages, const RemovedPages& removed)
    : source_(&source),
      layout_(&layout),
      source_pages_(std::move(source_pages)),
      removed_(&removed) {
  PF_CHECK(source_pages_.size() == layout.blocks().size());
  for (std::size_t i = 0; i < source_pages_.size(); ++i) {
    const std::uint64_t pages = layout.blocks()[i].pages();
    const std::uint64_t have = source.layout().pages();
    PF_CHECK(pages <= have && raw(source_pages_[i]) <= have - pages);
  }
  for (const PageIndex page : source.recent_pages()) {
    if (const auto here = in_guest(page)) recent_.push_back(*here);
  }
  std::sort(recent_.begin(), recent_.end());
}

PageIndex RegionSupply::in_source(PageIndex page) const {
  const std::size_t block = layout_->block_of(page);
  return source_pages_[block] + (page - layout_->blocks()[block].first_page);
}

// nullopt: no region shows that page.
std::optional<PageIndex> RegionSupply::in_guest(PageIndex source_page) const {
  for (std::size_t i = 0; i < source_pages_.size(); ++i) {
    const RamBlock& block = layout_->blocks()[i];
    if (source_page < source_pages_[i] || source_page - source_pages_[i] >= block.pages()) continue;
    return block.first_page + (source_page - source_pages_[i]);
  }
  return std::nullopt;
}

bool RegionSupply::is_zero(PageIndex page) const {
  return removed_->has(page) || source_->is_zero(in_source(page));
}

std::uint32_t RegionSupply::version(PageIndex page) const {
  return source_->version(in_source(page));
}

PageRun RegionSupply::contiguous_run(PageIndex page, std::uint64_t pages_max) const {
  const RamBlock& block = layout_->blocks()[layout_->block_of(page)];
  const std::uint64_t in_region = block.pages() - (page - block.first_page);
  const std::uint64_t most = std::min(pages_max, in_region);
  return {.first = page, .pages = source_->contiguous_run(in_source(page), most).pages};
}

Result<std::uint64_t> RegionSupply::start_read(PageRun run, ReadClass read_class) {
  PF_ASSIGN(const std::uint64_t ticket,
            source_->start_read({.first = in_source(run.first), .pages = run.pages}, read_class));
  reading_.emplace(ticket, run.first);
  return ticket;
}

std::vector<ReadDone> RegionSupply::poll() {
  std::vector<ReadDone> done = source_->poll();
  for (ReadDone& one : done) {
    const auto found = reading_.find(one.ticket);
    PF_CHECK(found != reading_.end());
    one.run.first = found->second;
    reading_.erase(found);
  }
  return done;
}

}  // namespace pageferry
