// Invariant: whenever a function returns, each REMOVE that was read is in RemovedPages, and whoever waited in its range was woken.
#include "pager/ballooning_outlet.h"

#include <utility>

namespace pageferry {

// Who waits for a page that was removed may have been heard before, and wait for what PageIn will bring and put() drop: woken, they ask
// again, and are told apart then.
Result<void> BallooningOutlet::hear() {
  heard_.removed.clear();
  auto read = placing_->read_events(heard_);
  for (const PageRun& run : heard_.removed) {
    removed_->add(run);
    PF_TRY(placing_->wake(run));
  }
  return read;
}

Result<void> BallooningOutlet::read_faults(std::vector<PageRun>& faults) {
  held_ = false;
  PF_TRY(hear());
  for (const PageRun& fault : std::exchange(heard_.faults, {})) {
    if (!removed_->has(fault.first)) {
      faults.push_back(fault);
      continue;
    }
    PF_ASSIGN(const bool placed, placing_->put_zero_backing_page(fault.first));
    if (placed) {
      ++zeros_placed_;
    } else {
      heard_.faults.push_back(fault);
      held_ = true;
    }
  }
  return {};
}

// `put_kept(from, pages)` places a part of the run, counted from its first page, none of which was removed.
template <typename Put>
Result<std::uint64_t> BallooningOutlet::put(PageChannel channel, PageRun run, Put put_kept) {
  std::uint64_t done = 0;
  while (done < run.pages) {
    const PageRun rest{.first = run.first + done, .pages = run.pages - done};
    const std::uint64_t pages = removed_->alike(rest);
    if (removed_->has(rest.first)) {
      placing_->forget_gathered(channel);
      done += pages;
      continue;
    }
    PF_ASSIGN(const std::uint64_t placed, put_kept(done, pages));
    done += placed;
    if (placed == pages) continue;
    held_ = true;
    PF_TRY(hear());
    break;
  }
  return done;
}

Result<std::uint64_t> BallooningOutlet::put_pages(PageChannel channel, PageRun run,
                                                  std::span<const std::byte> bytes) {
  return put(channel, run, [&](std::uint64_t from, std::uint64_t pages) {
    return placing_->put_pages(channel, {.first = run.first + from, .pages = pages},
                               bytes.subspan(bytes_of_pages(from), bytes_of_pages(pages)));
  });
}

Result<std::uint64_t> BallooningOutlet::put_zeros(PageChannel channel, PageRun run) {
  return put(channel, run, [&](std::uint64_t from, std::uint64_t pages) {
    return placing_->put_zeros(channel, {.first = run.first + from, .pages = pages});
  });
}

}  // namespace pageferry
