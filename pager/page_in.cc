// What is asked for, and the order of one step. Reads are in page_in_reads.cc, sending in
// page_in_send.cc.
//
// A fault on an absent page reads the neighbourhood too (fault-around): a few pages, or 64 where a
// recent fault was close by, or where the page is zero (a guest takes fresh zero pages in rows, and
// they cost nothing to read).
#include "pager/page_in.h"

#include <algorithm>
#include <utility>

namespace pageferry {
namespace {

constexpr std::uint64_t kAroundPagesWide = 64;
constexpr std::uint64_t kDemandPages =
    4;  // 16 KiB take 10 us longer than one page, 64 KiB twice as long
constexpr unsigned kNeighbourReadsMax = 3;  // other places of the file that one fault may read
constexpr std::size_t kRegionsKept = 16;
constexpr Nanoseconds kGentleInterval =
    std::chrono::microseconds(400);  // one step's share each: 320 MiB/s

}  // namespace

PageIn::PageIn(PageSupply& supply, const MemoryLayout& layout, SentMap sent, PageOutlet& outlet,
               const Clock& clock, PageInOptions options)
    : supply_(&supply),
      layout_(&layout),
      outlet_(&outlet),
      clock_(&clock),
      options_(std::move(options)),
      sent_(std::move(sent)),
      prefetcher_(supply, layout, sent_, options_.order, options_.recorded),
      window_(options_.prefetch_bytes_in_flight_max, options_.prefetch_bandwidth_bytes_per_s,
              options_.prefetch_bytes_in_flight_quiet_max, options_.fault_latency_slack),
      tickets_(supply) {}

Result<void> PageIn::step() {
  wants_step_ = false;
  wake_at_.reset();
  collect();
  start_waiting(demand_reads_);
  start_waiting(around_reads_);
  activate_transfers();
  PF_ASSIGN(const Progress urgent, send_urgent());
  if (urgent == Progress::stuck && options_.channels == ChannelCount::one) return {};
  const Nanoseconds now = clock_->now();
  const Nanoseconds due = background_ran_at_ + background_rest(now);
  if (now < due) {
    wake_at_ = due;
    return {};
  }
  background_ran_at_ = now;
  // Asking costs a system call, and nobody wants to know while a guest without prefetch waits for its pages.
  const bool looks_at_cpu = prefetcher_.sweeping();
  const ThreadCpuClock cpu_clock;
  const Nanoseconds cpu_before = looks_at_cpu ? cpu_clock.now() : Nanoseconds(0);
  start_waiting(prefetch_reads_);
  start_prefetch();
  PF_TRY(send_background());
  const Nanoseconds ended_at = clock_->now();
  background_cost_ = ended_at - now;
  if (looks_at_cpu) {
    cpu_pressure_.note(background_cost_, cpu_clock.now() - cpu_before, ended_at);
  }
  return {};
}

void PageIn::set_pace(PrefetchPace pace) {
  pace_ = pace;
}

// From the beginning of one turn of prefetch to that of the next: at once, while it brings what is known to be wanted soon.
Nanoseconds PageIn::background_rest(Nanoseconds now) const {
  Nanoseconds rest{0};
  // What the sweep brings is nobody's hurry: where CPU time is short, it is the guest's.
  if (prefetcher_.sweeping() && cpu_pressure_.felt(now)) rest = 3 * background_cost_ / 2;
  if (pace_ == PrefetchPace::gentle) rest = kGentleInterval;
  // Not for ever: where faults never cease, prefetch still gets its share.
  if (!open_faults_.empty()) rest = std::max(rest, options_.prefetch_held_max);
  return rest;
}

std::optional<PageRun> PageIn::backing_of(PageIndex page) const {
  const RamBlock& block = layout_->blocks()[layout_->block_of(page)];
  if (block.backing_page_bytes == kPageSizeBytes) return std::nullopt;
  const std::uint64_t unit = pages_of_bytes(block.backing_page_bytes);
  return PageRun{.first = block.first_page + (page - block.first_page) / unit * unit,
                 .pages = unit};
}

// An outlet may keep a backing page until its last page comes.
bool PageIn::has_left(PageIndex page) const {
  const auto unit = backing_of(page);
  return sent_.state(unit ? unit->first + (unit->pages - 1) : page) == PageState::sent;
}

void PageIn::request(PageRun run) {
  const std::uint64_t end = raw(run.first) + run.pages;
  PageIndex page = run.first;
  while (raw(page) < end) {
    if (const auto unit = backing_of(page)) {
      request_backing(*unit);
      page = unit->first + unit->pages;
    } else {
      request_page(page);
      page = page + 1;
    }
  }
}

void PageIn::request_page(PageIndex page) {
  if (sent_.state(page) == PageState::sent) {
    ++counters_.faults_already_sent;
    return;
  }
  const Nanoseconds now = clock_->now();
  if (!open_faults_.emplace(raw(page), now).second) return;  // asked for twice
  window_.note_fault(now);
  ++counters_.faults;
  prefetcher_.note_fault(page);
  if (sent_.state(page) == PageState::absent) {
    start_fault(page);
  } else {
    promote(page);
  }
}

void PageIn::request_backing(PageRun unit) {
  const PageIndex last = unit.first + (unit.pages - 1);
  if (sent_.state(last) == PageState::sent) {
    ++counters_.faults_already_sent;
    return;
  }
  const Nanoseconds now = clock_->now();
  if (!open_faults_.emplace(raw(unit.first), now).second) return;
  window_.note_fault(now);
  ++counters_.faults;
  prefetcher_.note_fault(unit.first);
  if (sent_.state(last) == PageState::absent) {
    sent_.take(unit);
    note_touch(unit);
    backing_wanted_.push_back(unit);
  } else if (backing_prefetch_ == unit) {
    backing_prefetch_.reset();
    backing_wanted_.push_back(unit);
  }
}

// The aligned neighbourhood of a page inside its block.
PageRun PageIn::fault_window(PageIndex page) {
  const std::uint64_t region = raw(page) / kPrefetchRegionPages;
  const bool seen =
      std::find(fault_regions_.begin(), fault_regions_.end(), region) != fault_regions_.end();
  if (!seen) {
    fault_regions_.push_back(region);
    if (fault_regions_.size() > kRegionsKept) fault_regions_.pop_front();
  }
  const std::uint64_t wide =
      seen || supply_->is_zero(page) ? kAroundPagesWide : options_.pages_around_lone_fault;
  const RamBlock& block = layout_->blocks()[layout_->block_of(page)];
  const std::uint64_t offset = (page - block.first_page) / wide * wide;
  return {.first = block.first_page + offset, .pages = std::min(wide, block.pages() - offset)};
}

// Takes the absent pages around a fault, piece by piece: the piece that holds the page is a demand
// read (or a zero page in hand), the others ride along as prefetch.
void PageIn::start_fault(PageIndex fault) {
  const PageRun window = fault_window(fault);
  const PageIndex end = window.first + window.pages;
  const bool fault_is_zero = supply_->is_zero(fault);
  unsigned neighbour_reads = 0;
  PageIndex page = window.first;
  while (const auto next = sent_.next_absent(page, end)) {
    const std::uint64_t absent = sent_.absent_run(*next, raw(end) - raw(*next));
    PageRun run{.first = *next, .pages = 1};
    const bool zero = supply_->is_zero(*next);
    if (zero) {
      while (run.pages < absent && supply_->is_zero(run.first + run.pages)) ++run.pages;
    } else {
      run = supply_->contiguous_run(*next, absent);
    }
    page = run.first + run.pages;
    const bool holds_fault = raw(fault) >= raw(run.first) && fault - run.first < run.pages;
    if (!holds_fault && !zero && (fault_is_zero || neighbour_reads++ >= kNeighbourReadsMax)) {
      continue;
    }
    sent_.take(run);
    note_touch(run);
    if (!zero) {
      if (holds_fault)
        read_fault(fault, run);
      else
        prefetch_reads_.push_back({.run = run, .purpose = Purpose::prefetch});
      continue;
    }
    around_.push_back({.run = run});
    if (holds_fault) PF_CHECK(promote_in(around_, fault));
  }
}

// The few pages at the fault first, by themselves: the guest waits for that read. Then what is above, then what is below.
void PageIn::read_fault(PageIndex fault, PageRun run) {
  const std::uint64_t at = fault - run.first;
  const std::uint64_t begin = at - std::min(at, raw(fault) % kDemandPages);
  const std::uint64_t end = std::min(begin + kDemandPages, run.pages);
  demand_reads_.push_back({.run = {.first = run.first + begin, .pages = end - begin},
                           .purpose = Purpose::demand,
                           .wanted = {fault}});
  if (end < run.pages) {
    around_reads_.push_back(
        {.run = {.first = run.first + end, .pages = run.pages - end}, .purpose = Purpose::around});
  }
  if (begin > 0) {
    around_reads_.push_back(
        {.run = {.first = run.first, .pages = begin}, .purpose = Purpose::around});
  }
}

// A page that prefetch has taken is wanted now: finds it wherever it is and puts it in front (I2).
void PageIn::promote(PageIndex page) {
  const PageRun run{.first = page, .pages = 1};
  if (promote_in(around_, page)) return;
  if (promote_in(background_, page)) return note_touch(run);
  for (const Purpose purpose : {Purpose::demand, Purpose::around}) {
    if (promote_read(purpose, page)) return;
  }
  if (promote_read(Purpose::prefetch, page)) return note_touch(run);
  for (auto& [ticket, read] : reads_) {
    if (raw(page) < raw(read.run.first) || page - read.run.first >= read.run.pages) continue;
    read.wanted.push_back(page);
    if (read.purpose == Purpose::prefetch) note_touch(run);
    return;
  }
  // In demanded_ already, or a page that could not be proved (I5): nothing to do.
}

// Cuts the page out of a queue of pages in hand.
bool PageIn::promote_in(Queue& queue, PageIndex page) {
  for (auto piece = queue.begin(); piece != queue.end(); ++piece) {
    if (raw(page) < raw(piece->run.first) || page - piece->run.first >= piece->run.pages) continue;
    const PagePiece whole = *piece;
    const std::uint64_t at = page - whole.run.first;
    demanded_.push_back(whole.part(at, 1));
    if (&queue == &background_) --background_pages_;
    auto rest = queue.erase(piece);
    // From the page upwards first: that is what is touched next.
    if (at > 0) rest = queue.insert(rest, whole.part(0, at));
    if (at + 1 < whole.run.pages) {
      queue.insert(rest, whole.part(at + 1, whole.run.pages - at - 1));
    }
    return true;
  }
  return false;
}

// A read that waits for a slot at the supply becomes a demand read.
bool PageIn::promote_read(Purpose from, PageIndex page) {
  std::deque<Read>& reads = waiting_for(from);
  for (auto read = reads.begin(); read != reads.end(); ++read) {
    if (raw(page) < raw(read->run.first) || page - read->run.first >= read->run.pages) continue;
    read->wanted.push_back(page);
    if (from == Purpose::demand) return true;
    Read moved = std::move(*read);
    moved.purpose = Purpose::demand;
    reads.erase(read);
    demand_reads_.push_back(std::move(moved));
    return true;
  }
  return false;
}

}  // namespace pageferry
