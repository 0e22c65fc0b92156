// Invariants
//   O1: a page is read only while its bit is in `work`, which was collected before (and armed, while the guest runs).
//
//   O2: work that was not put as a whole goes back into dirty_.
#include "pager/page_out.h"

#include <fmt/format.h>

namespace pageferry {
namespace {

// Between two looks at the cancel signal; as much as one write takes.
constexpr std::uint64_t kRunPagesMax = 256;

std::uint64_t rate_bytes_per_s(std::uint64_t bytes, Nanoseconds duration) {
  if (bytes == 0 || duration <= Nanoseconds(0)) return 0;
  return static_cast<std::uint64_t>(static_cast<double>(bytes) * 1e9 /
                                    static_cast<double>(duration.count()));
}

}  // namespace

std::uint64_t PassStats::bytes_per_s() const {
  return rate_bytes_per_s(bytes_of_pages(pages), duration);
}

PageOut::PageOut(GuestPages& memory, DirtySource& source, PageSink& sink,
                 const CancelSignal& cancel, const Clock& clock)
    : memory_(memory),
      source_(source),
      sink_(sink),
      cancel_(cancel),
      clock_(clock),
      dirty_(memory.layout().pages()) {}

Result<PageOut::LivePass> PageOut::run_live_pass() {
  if (passes_ == 0) PF_TRY(source_.collect_into(dirty_));
  const Nanoseconds start = clock_.now();
  sink_.begin_pass(passes_ + 1);
  LivePass live;
  PF_ASSIGN(live.pass, run_pass());
  PF_TRY(source_.collect_into(dirty_));
  // While the sink prepares, the guest goes on writing: what is decided afterwards is decided on what is dirty then.
  PF_TRY(sink_.prepare_blackout(bytes_of_pages(dirty_.count())));
  PF_TRY(source_.collect_into(dirty_));
  // A short pass says little about the store: its rate is that of the buffers
  // before it.
  if (live.pass.number == 1) first_pass_bytes_per_s_ = live.pass.bytes_per_s();
  live.facts.passes_done = passes_;
  live.facts.every_page_stored_once = true;
  live.facts.pass_bytes = bytes_of_pages(live.pass.pages);
  live.facts.remaining_bytes = bytes_of_pages(dirty_.count());
  live.facts.write_bytes_per_s = first_pass_bytes_per_s_;
  live.facts.dirty_bytes_per_s = rate_bytes_per_s(live.facts.remaining_bytes, clock_.now() - start);
  return live;
}

Result<BrownoutStats> PageOut::run_brownout(const ConvergenceLimits& limits,
                                            const Observer& observer) {
  BrownoutStats stats;
  for (;;) {
    PF_ASSIGN(const LivePass live, run_live_pass());
    stats.passes.push_back(live.pass);
    stats.facts = live.facts;
    if (observer) observer(live.pass, live.facts);
    if (const auto end = brownout_end(limits, live.facts)) {
      stats.end = *end;
      return stats;
    }
  }
}

// Nobody writes any more: what is found of one piece of memory is stored while the next is looked at.
Result<PassStats> PageOut::run_blackout() {
  PF_CHECK(passes_ > 0);
  const Nanoseconds start = clock_.now();
  PF_TRY(sink_.begin_blackout());
  DirtyBitmap work = dirty_.take();
  if (Result<void> done = put_paused(work); !done) {
    dirty_.merge_back(work);
    return in_pass(std::move(done).error());
  }
  ++passes_;
  return PassStats{passes_, work.count(), clock_.now() - start};
}

Result<void> PageOut::put_paused(DirtyBitmap& work) {
  const PageIndex end{work.pages()};
  for (PageIndex from{0}; from < end;) {
    PF_ASSIGN(const PageIndex next, source_.collect_paused_into(work, from));
    PF_TRY(put(work, from, next));
    from = next;
  }
  DirtyBitmap reported(work.pages());
  source_.take_reports_into(reported);
  reported.remove(work);
  work.merge_back(reported);
  return put(reported, PageIndex{0}, end);
}

Result<PassStats> PageOut::run_pass() {
  const DirtyBitmap work = dirty_.take();
  const Nanoseconds start = clock_.now();
  if (Result<void> done = put(work, PageIndex{0}, PageIndex{work.pages()}); !done) {
    dirty_.merge_back(work);
    return in_pass(std::move(done).error());
  }
  ++passes_;
  return PassStats{passes_, work.count(), clock_.now() - start};
}

Unexpected PageOut::in_pass(Error error) const {
  return with_context(std::move(error), fmt::format("pass {}", passes_ + 1));
}

Result<void> PageOut::put(const DirtyBitmap& work, PageIndex from, PageIndex end) {
  auto run = work.next_run(from, end, kRunPagesMax);
  while (run) {
    if (cancel_.canceled()) return fail(Errc::canceled, "page-out: canceled");
    const auto next = work.next_run(run->first + run->pages, end, kRunPagesMax);
    if (next) memory_.expect(next->first);
    PF_ASSIGN(const std::uint64_t done, memory_.put(*run, sink_));
    run = done == run->pages ? next : work.next_run(run->first + done, end, kRunPagesMax);
  }
  return {};
}

}  // namespace pageferry
