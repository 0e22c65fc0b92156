// One bit a page. Release and acquire make a pair: what the marking thread wrote before is seen by whoever takes the mark.
#include "pager/reported_pages.h"

#include <algorithm>
#include <bit>
#include <span>

#include "pager/page_words.h"
#include "transport/os/error.h"

namespace pageferry {

ReportedPages::ReportedPages(std::uint64_t pages) : pages_(pages), words_(words_for_pages(pages)) {}

void ReportedPages::mark(PageRun run) {
  PF_CHECK(run.pages <= pages_ && raw(run.first) <= pages_ - run.pages);
  for_each_word(run, [this](std::size_t word, std::uint64_t mask) {
    words_[word].fetch_or(mask, std::memory_order_acq_rel);
  });
}

void ReportedPages::take_into(DirtyBitmap& dirty, PageRun run) {
  PF_CHECK(dirty.pages() == pages_);
  PF_CHECK(run.pages <= pages_ && raw(run.first) <= pages_ - run.pages);
  for_each_word(run, [&](std::size_t word, std::uint64_t mask) {
    // A mark that is made after this look belongs to the next collection.
    if ((words_[word].load(std::memory_order_relaxed) & mask) == 0) return;
    const std::uint64_t taken = words_[word].fetch_and(~mask, std::memory_order_acq_rel) & mask;
    const PageIndex first{word * kPagesPerWord};
    const std::uint64_t pages = std::min(kPagesPerWord, pages_ - raw(first));
    dirty.set_where({first, pages}, std::span(&taken, 1));
  });
}

}  // namespace pageferry
