// RegionSupply: the pages of a guest whose memory lies in regions of its own, each at some offset of a memory image that numbers pages in
// its own way: "region 1 is the image from 3 GiB on". Renumbers; reads nothing itself.
//
//   pages of the guest:    | region 0      | region 1   |                       a row over the regions, as MemoryLayout numbers them
//   pages of the source:   | ... | region 1   | ... | region 0      | ... |
//
// Pages that the guest's VMM has removed (RemovedPages) are zero here, so that nobody reads the source for them.
//
// Thread rule: as PageSupply. Lifetime: source, layout and removed pages outlive it.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page.h"
#include "pager/page_supply.h"
#include "pager/removed_pages.h"
#include "transport/os/error.h"

namespace pageferry {

class RegionSupply final : public PageSupply {
 public:
  // `source_pages`: the source's page at which each block of the layout begins. Precondition: as many as blocks; each block lies inside
  // the source; no two share a page of it.
  RegionSupply(PageSupply& source, const MemoryLayout& layout, std::vector<PageIndex> source_pages,
               const RemovedPages& removed);

  const MemoryLayout& layout() const override { return *layout_; }
  bool is_zero(PageIndex page) const override;
  std::uint32_t version(PageIndex page) const override;
  std::span<const PageIndex> recent_pages() const override { return recent_; }
  // Also ends at the end of a region.
  PageRun contiguous_run(PageIndex page, std::uint64_t pages_max) const override;
  Result<std::uint64_t> start_read(PageRun run, ReadClass read_class) override;
  int ready_fd() const override { return source_->ready_fd(); }
  std::vector<ReadDone> poll() override;
  void release(std::uint64_t ticket) override { source_->release(ticket); }

 private:
  PageIndex in_source(PageIndex page) const;
  std::optional<PageIndex> in_guest(PageIndex source_page) const;

  PageSupply* source_;
  const MemoryLayout* layout_;
  std::vector<PageIndex> source_pages_;
  const RemovedPages* removed_;
  std::vector<PageIndex> recent_;
  std::unordered_map<std::uint64_t, PageIndex> reading_;  // first page of the guest, by ticket
};

}  // namespace pageferry
