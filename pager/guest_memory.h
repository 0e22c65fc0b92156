// GuestMemory: where the pages of a MemoryLayout lie in this process. One mapping for each RAM block.
//
// Whoever reads it reads a running guest: bytes may change meanwhile. Tracking is armed before a page is read (dirty_source.h), so
// that what was read half old and half new is dirty again.
//
// Thread rule: immutable. Lifetime: the layout and the mappings outlive it.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page.h"
#include "pager/page_sink.h"
#include "transport/os/error.h"

namespace pageferry {

// What PageOut takes pages from. Thread rule: one thread.
class GuestPages {
 public:
  virtual ~GuestPages() = default;
  virtual const MemoryLayout& layout() const = 0;
  // Puts a part of `run` from its first page on, at least one page, into the sink: as it is now. How many. Precondition: run.pages > 0,
  // inside the layout. Errors: the sink's, and those of reading the memory.
  virtual Result<std::uint64_t> put(PageRun run, PageSink& sink) = 0;
  // It is put soon. Precondition: inside the layout.
  virtual void expect(PageIndex /*page*/) const {}
};

class GuestMemory final : public GuestPages {
 public:
  // Block i of the layout begins at block_addresses[i]. Errc::invalid names the block: null, not on a page border, or overlapping
  // another one; or their number differs.
  static Result<GuestMemory> make(const MemoryLayout& layout,
                                  std::vector<const std::byte*> block_addresses);

  const MemoryLayout& layout() const override { return *layout_; }
  // Lent to the sink (PageSink::put_lent_pages).
  Result<std::uint64_t> put(PageRun run, PageSink& sink) override;
  void expect(PageIndex page) const override;

  // The part of `run`, from its first page on, that lies in one block. Precondition: run.pages > 0, run.first inside the layout.
  PageRun within_block(PageRun run) const;
  // Precondition: inside the layout and within one block (checked).
  std::span<const std::byte> bytes(PageRun run) const;

 private:
  GuestMemory(const MemoryLayout& layout, std::vector<const std::byte*> block_addresses)
      : layout_(&layout), block_addresses_(std::move(block_addresses)) {}

  const MemoryLayout* layout_;
  std::vector<const std::byte*> block_addresses_;
};

}  // namespace pageferry
