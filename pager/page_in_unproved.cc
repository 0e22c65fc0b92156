// What becomes of pages that cannot be proved: they are set aside, one by one or with their backing page, until somebody reads them
// again or settles them in another way.
//
// A page that is set aside stays in flight in the SentMap: neither prefetch nor a second request starts a read for it.
#include <fmt/format.h>

#include <utility>

#include "pager/page_in.h"

namespace pageferry {

Error PageIn::unproved_error(PageIndex page, const Error& error) const {
  const RamBlock& block = layout_->blocks()[layout_->block_of(page)];
  return with_context(error,
                      fmt::format("page {} (block '{}', offset {:#x}) cannot be proved", raw(page),
                                  block.name, bytes_of_pages(page - block.first_page)))
      .value();
}

void PageIn::set_aside(PageIndex page, Error error) {
  BackingTransfer* const transfer = transfer_holding(page);
  PageRun run{.first = page, .pages = 1};
  if (transfer != nullptr) {
    // Their buffers now, not with the last read: those that are still to come need some.
    for (const PagePiece& piece : transfer->fail_read(run)) {
      tickets_.drop(piece.ticket, piece.run.pages);
    }
    run = transfer->unit();
    wants_step_ = true;
  }
  unproved_.insert_or_assign(raw(run.first), Unproved{.run = run, .error = std::move(error)});
}

// A backing page that cannot be completed leaves its channel once nothing of it is on its way.
void PageIn::drop_spoiled(PageChannel channel) {
  std::optional<BackingTransfer>& transfer = transfer_on(channel);
  if (!transfer || !transfer->spoiled() || transfer->reads_pending() > 0) return;
  const PageRun sent = transfer->sent_run();
  if (sent.pages > 0) {
    sent_.take_back(sent);
    counters_.pages_prefetched -= sent.pages;
    outlet_->forget_begun(channel);
  }
  transfer.reset();
  wants_step_ = true;
}

void PageIn::read_again(PageIndex first) {
  const auto entry = unproved_.find(raw(first));
  PF_CHECK(entry != unproved_.end());
  const PageRun run = entry->second.run;
  unproved_.erase(entry);
  wants_step_ = true;
  if (run.pages > 1) {
    backing_wanted_.push_back(run);
    return;
  }
  Read read{.run = run, .purpose = Purpose::demand};
  if (is_wanted(first)) read.wanted.push_back(first);
  demand_reads_.push_back(std::move(read));
}

void PageIn::settle_unproved(PageIndex first) {
  const auto entry = unproved_.find(raw(first));
  PF_CHECK(entry != unproved_.end());
  const PageRun run = entry->second.run;
  unproved_.erase(entry);
  sent_.mark_sent(run);
  settle(run);
}

}  // namespace pageferry
