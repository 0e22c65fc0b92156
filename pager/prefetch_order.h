// Prefetcher: which pages a restore reads next when nobody waits for any. Order only: no I/O, no
// page contents.
//
//   none    nothing is read unasked
//   linear  all stored pages in file order of the guest, then the zero pages
//   hot     what the source wrote while its guest was stopped, then regions that faulted, then what
//           it had dirtied before, the latest first, then as linear
//   recorded  as hot, but after what the source wrote last come the pages that the guest touched first after an earlier restore
//             (TouchRecord), in that order
//
// The guest is looked at in regions of 1 MiB. A region is hot when pages of it have a newer version
// (PageSupply::version) than most of the guest, which a sample tells; several such pages make the
// whole region hot (what a guest dirtied in a short brownout is a sample of its working set), few
// only themselves. Regions go by their newest version, at the same version those with few hot pages
// first (kernel data: cheap, and touched at once). A hot region that faulted, or any that faulted
// twice, goes before the others, the latest first, from the fault on upwards; one fault alone says
// little: guests also touch memory at random.
//
// Cost: one byte for each MiB of guest, and 12 bytes for each hot one (12 MiB at most for 1 TiB).
// The versions are read in slices between the first calls of next(), so a start is immediate; one
// call looks at no more than kPagesLookedAtMax pages.
//
// Thread rule: one thread, the restore loop's.
// Lifetime: supply, layout and sent map outlive it; the sent map is read, never written.
#pragma once

#include <cstdint>
#include <deque>
#include <queue>
#include <span>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page.h"
#include "pager/page_supply.h"
#include "pager/sent_map.h"

namespace pageferry {

enum class PrefetchOrder : std::uint8_t { none, linear, hot, recorded };

inline constexpr std::uint64_t kPrefetchRegionPages = 256;  // 1 MiB
inline constexpr std::uint64_t kPrefetchRunPagesMax = 64;   // 256 KiB: the longest read
inline constexpr std::uint64_t kPagesLookedAtMax = 16'384;  // bound on the work of one next()

struct PrefetchChoice {
  enum class Kind : std::uint8_t {
    stored,   // `run` lies together in the supply: one read
    zero,     // every page of `run` is zero
    backing,  // `run` is one backing page larger than a page: all of it, whatever it holds
    again,    // nothing found yet within the bound: call again
    done,     // nothing is left to prefetch
  };
  Kind kind = Kind::done;
  PageRun run;
};

class Prefetcher {
 public:
  // `layout`: the destination's (its backing_page_bytes count). Same pages as supply.layout(). `recorded`: runs inside it; outlives this.
  Prefetcher(const PageSupply& supply, const MemoryLayout& layout, const SentMap& sent,
             PrefetchOrder order, std::span<const PageRun> recorded = {});

  // The next absent pages, all in one block. The caller takes them in the sent map before it calls
  // again, or drops them: they are then found again only by the linear pass.
  PrefetchChoice next();
  // No choice is longer, but a backing page. 1 to kPrefetchRunPagesMax, which is the default.
  void set_run_pages_max(std::uint64_t pages) { run_pages_max_ = pages; }
  // What is known to be wanted soon has been chosen; next() is at the rest.
  bool sweeping() const { return sweeping_; }
  // The last choice was a recorded one.
  bool replaying() const { return replaying_; }
  // The guest asked for this page. In a hot region, or at the second time: what lies around it, upwards first, goes next.
  void note_fault(PageIndex page);

 private:
  enum class Density : std::uint8_t { whole, sparse };
  // What is being emptied: absent pages in [cursor, end), in sparse walks only the hot ones.
  struct Walk {
    PageIndex cursor{};
    PageIndex end{};
    Density density = Density::whole;
  };
  struct HotRegion {
    std::uint32_t version_max = 0;
    Density density = Density::whole;
    std::uint16_t hot_pages = 0;
    std::uint32_t region = 0;
    bool operator<(const HotRegion& other) const;  // "less urgent than"
  };
  enum class Pass : std::uint8_t { stored, zero, finished };

  std::uint32_t sample_usual_version() const;
  void scan_versions();
  PrefetchChoice next_recent();
  PrefetchChoice next_recorded(std::uint64_t& budget);
  bool follows_heat() const {
    return order_ == PrefetchOrder::hot || order_ == PrefetchOrder::recorded;
  }
  bool next_walk(Walk& walk);
  PrefetchChoice advance(Walk& walk, std::uint64_t& budget);
  PrefetchChoice sweep(std::uint64_t& budget);
  PrefetchChoice choice_at(PageIndex page, PageIndex end, Density density) const;
  bool wanted_in_sweep(PageIndex page) const;
  const RamBlock& block_at(PageIndex page) const;
  PageIndex region_end(std::uint64_t region) const;

  const PageSupply* supply_;
  const MemoryLayout* layout_;
  const SentMap* sent_;
  PrefetchOrder order_;
  std::uint64_t run_pages_max_ = kPrefetchRunPagesMax;
  bool sweeping_ = false;
  bool replaying_ = false;

  std::uint32_t usual_version_ = 0;  // newer is hot; known when a scan has begun
  enum class RegionState : std::uint8_t { quiet, hot, faulted, raised };
  std::vector<RegionState> region_states_;
  std::size_t recent_cursor_ = 0;  // in supply_->recent_pages()
  std::span<const PageRun> recorded_;
  std::size_t recorded_cursor_ = 0;
  std::priority_queue<HotRegion> hot_;
  std::deque<Walk> raised_;  // regions that faulted, the next one at the front; at most kRaisedMax
  Walk walk_;                // the hot or raised region that is being emptied
  std::uint64_t scanned_pages_ = 0;
  Pass pass_ = Pass::stored;
  PageIndex sweep_cursor_{};
};

}  // namespace pageferry
