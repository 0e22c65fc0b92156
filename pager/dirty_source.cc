// What all sources have in common: the reports by hand, the first collection of all, and all again after an error.
#include "pager/dirty_source.h"

namespace pageferry {

Result<void> DirtySource::start(PagesAtStart pages) {
  PF_CHECK(!started_);
  PF_TRY(begin());
  if (pages == PagesAtStart::written) reported_.mark_all();
  started_ = true;
  return {};
}

// The marks are taken last: one that comes while the kernel is asked still counts now, and none is made for what is taken here
// and read later.
Result<void> DirtySource::collect_into(DirtyBitmap& dirty) {
  PF_CHECK(started_ && dirty.pages() == layout_->pages());
  if (auto fetched = fetch(dirty); !fetched) {
    reported_.mark_all();
    return with_context(std::move(fetched).error(), "collecting dirty pages");
  }
  reported_.take_into(dirty);
  return {};
}

Result<PageIndex> DirtySource::collect_paused_into(DirtyBitmap& dirty, PageIndex from) {
  PF_CHECK(started_ && dirty.pages() == layout_->pages() && raw(from) < layout_->pages());
  auto next = fetch_paused(dirty, from);
  if (!next) {
    reported_.mark_all();
    return with_context(std::move(next).error(), "collecting dirty pages");
  }
  if (from == PageIndex{0}) reported_.take_into(dirty);
  return *next;
}

Result<PageIndex> DirtySource::fetch_paused(DirtyBitmap& dirty, PageIndex) {
  PF_TRY(fetch(dirty));
  return PageIndex{layout_->pages()};
}

Result<void> DirtySource::stop() {
  if (!started_) return {};
  started_ = false;
  return end();
}

}  // namespace pageferry
