// PagePiece: pages in hand on their way out: zero pages, or (part of) the bytes of a finished read.
// Pieces of one read share its buffer; TicketUses gives it back when the last of its pages is gone.
//
// Thread rule: one thread. Lifetime: the bytes are the supply's, valid until the ticket is
// released.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>

#include "pager/page.h"
#include "pager/page_supply.h"
#include "transport/os/error.h"

namespace pageferry {

struct PagePiece {
  PageRun run{};
  std::span<const std::byte> bytes{};  // run.pages pages, or empty: zero pages
  std::uint64_t ticket = 0;            // of the read; without meaning for zero pages

  bool zero() const { return bytes.empty(); }
  void drop_front(std::uint64_t pages) {
    if (!zero()) bytes = bytes.subspan(bytes_of_pages(pages));
    run = {.first = run.first + pages, .pages = run.pages - pages};
  }
  // Pages [from, from + pages) of the piece, counted from its first. Precondition: inside it.
  PagePiece part(std::uint64_t from, std::uint64_t pages) const {
    PagePiece cut = *this;
    cut.run = {.first = run.first + from, .pages = pages};
    if (!zero()) cut.bytes = bytes.subspan(bytes_of_pages(from), bytes_of_pages(pages));
    return cut;
  }
};

// How many pages of each finished read are still in hand.
class TicketUses {
 public:
  explicit TicketUses(PageSupply& supply) : supply_(&supply) {}
  void add(std::uint64_t ticket, std::uint64_t pages) { uses_[ticket] += pages; }
  void drop(std::uint64_t ticket, std::uint64_t pages) {
    const auto use = uses_.find(ticket);
    PF_CHECK(use != uses_.end() && use->second >= pages);
    use->second -= pages;
    if (use->second > 0) return;
    uses_.erase(use);
    supply_->release(ticket);
  }

 private:
  PageSupply* supply_;
  std::unordered_map<std::uint64_t, std::uint64_t> uses_;
};

}  // namespace pageferry
