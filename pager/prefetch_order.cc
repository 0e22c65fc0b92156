// Choosing is a walk over absent pages: of a region (hot or raised), or of the whole guest (the
// sweep: stored pages, then zero pages). The sweep finds whatever the walks left, so a walk may be
// cut short or forgotten at any time; that is why the list of raised regions can be bounded and the
// versions can still be unread when the first choice is made.
//
// Rejected: sorting all pages by version (8 bytes a page: 2 GiB for a TiB guest, and a second of
// sorting while the guest waits); a heap of regions costs 12 bytes a hot MiB and is built while
// choices are already made.
#include "pager/prefetch_order.h"

#include <algorithm>

#include "transport/os/error.h"

namespace pageferry {
namespace {

constexpr std::uint16_t kWholeRegionHotPages = 8;  // of 256: from here the region is hot as a whole
constexpr std::uint64_t kSamples = 4096;
constexpr std::size_t kRaisedMax = 64;

}  // namespace

bool Prefetcher::HotRegion::operator<(const HotRegion& other) const {
  if (version_max != other.version_max) return version_max < other.version_max;
  if (density != other.density) return density == Density::whole;
  if (hot_pages != other.hot_pages) return hot_pages < other.hot_pages;
  return region > other.region;
}

Prefetcher::Prefetcher(const PageSupply& supply, const MemoryLayout& layout, const SentMap& sent,
                       PrefetchOrder order, std::span<const PageRun> recorded)
    : supply_(&supply), layout_(&layout), sent_(&sent), order_(order), recorded_(recorded) {
  PF_CHECK(supply.layout().pages() == layout.pages() && sent.pages() == layout.pages());
  if (order_ != PrefetchOrder::recorded) recorded_ = {};
  if (follows_heat()) {
    region_states_.resize((layout.pages() + kPrefetchRegionPages - 1) / kPrefetchRegionPages);
  }
}

const RamBlock& Prefetcher::block_at(PageIndex page) const {
  return layout_->blocks()[layout_->block_of(page)];
}

PageIndex Prefetcher::region_end(std::uint64_t region) const {
  return PageIndex{std::min((region + 1) * kPrefetchRegionPages, layout_->pages())};
}

PrefetchChoice Prefetcher::next() {
  if (order_ == PrefetchOrder::none) return {};
  std::uint64_t budget = kPagesLookedAtMax;
  sweeping_ = false;
  replaying_ = false;
  if (follows_heat()) {
    if (const PrefetchChoice recent = next_recent(); recent.kind != PrefetchChoice::Kind::done) {
      return recent;
    }
    if (const PrefetchChoice next = next_recorded(budget);
        next.kind != PrefetchChoice::Kind::done) {
      return next;
    }
    scan_versions();
    do {
      const PrefetchChoice choice = advance(walk_, budget);
      if (choice.kind != PrefetchChoice::Kind::done) return choice;
    } while (next_walk(walk_));
    if (scanned_pages_ < layout_->pages()) return {PrefetchChoice::Kind::again, {}};
  }
  sweeping_ = true;
  return sweep(budget);
}

// The version that half of the stored pages do not exceed, by a sample spread over the guest.
std::uint32_t Prefetcher::sample_usual_version() const {
  std::vector<std::uint32_t> versions;
  const std::uint64_t step = layout_->pages() / kSamples + 1;
  for (std::uint64_t page = 0; page < layout_->pages(); page += step) {
    if (!supply_->is_zero(PageIndex{page})) versions.push_back(supply_->version(PageIndex{page}));
  }
  if (versions.empty()) return 0;
  const auto middle = versions.begin() + static_cast<std::ptrdiff_t>(versions.size() / 2);
  std::nth_element(versions.begin(), middle, versions.end());
  return *middle;
}

// The next of the pages that were written last; neighbours together.
PrefetchChoice Prefetcher::next_recent() {
  const std::span<const PageIndex> recent = supply_->recent_pages();
  while (recent_cursor_ < recent.size()) {
    const PageIndex page = recent[recent_cursor_];
    const PageIndex stop = page + kPrefetchRunPagesMax;
    std::size_t end = recent_cursor_ + 1;
    while (end < recent.size() && recent[end] == page + (end - recent_cursor_) &&
           recent[end] < stop)
      ++end;
    const PageIndex run_end = page + (end - recent_cursor_);
    const auto absent = sent_->next_absent(page, run_end);
    if (!absent) {
      recent_cursor_ = end;
      continue;
    }
    const PrefetchChoice choice = choice_at(*absent, run_end, Density::whole);
    // A choice that ends before the run, or goes beyond it (a backing page), is found again here and gone by then.
    return choice;
  }
  return {};
}

// The next of the pages that an earlier guest touched.
PrefetchChoice Prefetcher::next_recorded(std::uint64_t& budget) {
  while (recorded_cursor_ < recorded_.size()) {
    if (budget == 0) return {PrefetchChoice::Kind::again, {}};
    --budget;
    const PageRun& run = recorded_[recorded_cursor_];
    const PageIndex end = run.first + run.pages;
    const auto absent = sent_->next_absent(run.first, end);
    if (!absent) {
      ++recorded_cursor_;
      continue;
    }
    replaying_ = true;
    return choice_at(*absent, end, Density::whole);
  }
  return {};
}

// Reads the versions of the next slice of the guest and queues its hot regions.
void Prefetcher::scan_versions() {
  static_assert(kPagesLookedAtMax % kPrefetchRegionPages == 0);
  // Not before: 4,096 cache misses are a millisecond, and a prefetcher is made while the guest stands still.
  if (scanned_pages_ == 0) usual_version_ = sample_usual_version();
  const std::uint64_t stop = std::min(scanned_pages_ + kPagesLookedAtMax, layout_->pages());
  while (scanned_pages_ < stop) {
    const std::uint64_t index = scanned_pages_ / kPrefetchRegionPages;
    HotRegion region{.region = static_cast<std::uint32_t>(index)};
    for (const std::uint64_t end = raw(region_end(index)); scanned_pages_ < end; ++scanned_pages_) {
      const std::uint32_t version = supply_->version(PageIndex{scanned_pages_});
      if (version <= usual_version_) continue;
      region.version_max = std::max(region.version_max, version);
      ++region.hot_pages;
    }
    if (region.hot_pages == 0) continue;
    if (region_states_[index] == RegionState::quiet) region_states_[index] = RegionState::hot;
    const bool many = region.hot_pages >= kWholeRegionHotPages;
    region.density = many ? Density::whole : Density::sparse;
    hot_.push(region);
  }
}

// Raised regions first, then the hottest; false when there is neither.
bool Prefetcher::next_walk(Walk& walk) {
  if (!raised_.empty()) {
    walk = raised_.front();
    raised_.pop_front();
    return true;
  }
  if (hot_.empty()) return false;
  const HotRegion top = hot_.top();
  hot_.pop();
  walk = {.cursor = PageIndex{top.region * kPrefetchRegionPages},
          .end = region_end(top.region),
          .density = top.density};
  return true;
}

// The next choice of a walk; done when it is exhausted, again when the budget is.
PrefetchChoice Prefetcher::advance(Walk& walk, std::uint64_t& budget) {
  while (budget > 0) {
    const auto page = sent_->next_absent(walk.cursor, walk.end);
    if (!page) {
      walk.cursor = walk.end;
      return {};
    }
    --budget;
    if (walk.density == Density::sparse && supply_->version(*page) <= usual_version_) {
      walk.cursor = *page + 1;
      continue;
    }
    const PrefetchChoice choice = choice_at(*page, walk.end, walk.density);
    walk.cursor = choice.run.first + choice.run.pages;
    return choice;
  }
  return {PrefetchChoice::Kind::again, {}};
}

bool Prefetcher::wanted_in_sweep(PageIndex page) const {
  return pass_ == Pass::zero || !supply_->is_zero(page);
}

// The two passes over the whole guest.
PrefetchChoice Prefetcher::sweep(std::uint64_t& budget) {
  const PageIndex end{layout_->pages()};
  while (pass_ != Pass::finished) {
    while (const auto page = sent_->next_absent(sweep_cursor_, end)) {
      if (budget == 0) return {PrefetchChoice::Kind::again, {}};
      --budget;
      if (!wanted_in_sweep(*page)) {
        sweep_cursor_ = *page + 1;
        continue;
      }
      const PrefetchChoice choice = choice_at(*page, end, Density::whole);
      sweep_cursor_ = choice.run.first + choice.run.pages;
      return choice;
    }
    pass_ = pass_ == Pass::stored ? Pass::zero : Pass::finished;
    sweep_cursor_ = PageIndex{0};
  }
  return {};
}

// The longest choice that begins at an absent page and ends before `end` and the block's end.
PrefetchChoice Prefetcher::choice_at(PageIndex page, PageIndex end, Density density) const {
  using Kind = PrefetchChoice::Kind;
  const RamBlock& block = block_at(page);
  if (block.backing_page_bytes > kPageSizeBytes) {
    const std::uint64_t unit = pages_of_bytes(block.backing_page_bytes);
    const std::uint64_t offset = (page - block.first_page) / unit * unit;
    return {Kind::backing, {.first = block.first_page + offset, .pages = unit}};
  }
  const std::uint64_t stop = std::min(raw(end), raw(block.first_page) + block.pages());
  const std::uint64_t room = std::min(stop - raw(page), run_pages_max_);
  const std::uint64_t absent = sent_->absent_run(page, room);
  std::uint64_t pages = 1;
  const bool zero = supply_->is_zero(page);
  if (!zero) {
    pages = std::min(absent, supply_->contiguous_run(page, absent).pages);
  } else {
    while (pages < absent && supply_->is_zero(page + pages)) ++pages;
  }
  if (density == Density::sparse) {
    std::uint64_t hot = 1;
    while (hot < pages && supply_->version(page + hot) > usual_version_) ++hot;
    pages = hot;
  }
  return {zero ? Kind::zero : Kind::stored, {.first = page, .pages = pages}};
}

void Prefetcher::note_fault(PageIndex page) {
  if (!follows_heat()) return;
  const std::uint64_t index = raw(page) / kPrefetchRegionPages;
  RegionState& state = region_states_[index];
  if (state == RegionState::raised) return;
  if (state == RegionState::quiet) {
    state = RegionState::faulted;
    return;
  }
  state = RegionState::raised;
  // From the fault upwards first, then what lies below it.
  const PageIndex begin{index * kPrefetchRegionPages};
  raised_.push_front({.cursor = begin, .end = page, .density = Density::whole});
  raised_.push_front({.cursor = page, .end = region_end(index), .density = Density::whole});
  while (raised_.size() > kRaisedMax) raised_.pop_back();
}

}  // namespace pageferry
