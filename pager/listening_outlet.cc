// Pages that somebody waits for are placed without a look: they are few, and he is the one who would have to be heard.
#include "pager/listening_outlet.h"

#include <algorithm>

namespace pageferry {
namespace {

// About 10 us of placing, in which no other thread is woken and gets to read the fault. Zero pages cost a tenth.
constexpr std::uint64_t kPiecePages = 8;
constexpr std::uint64_t kZeroPiecePages = 64;

}  // namespace

Result<void> ListeningOutlet::read_faults(std::vector<PageRun>& faults) {
  faults.insert(faults.end(), heard_.begin(), heard_.end());
  heard_.clear();
  return placing_->read_faults(faults);
}

// `put_piece(from, pages)` places a part of the run, counted from its first page.
template <typename Put>
Result<std::uint64_t> ListeningOutlet::put(PageChannel channel, PageRun run,
                                           std::uint64_t piece_pages, Put put_piece) {
  if (channel == PageChannel::urgent) return put_piece(0, run.pages);
  std::uint64_t done = 0;
  while (done < run.pages && heard_.empty()) {
    const std::uint64_t pages = std::min(piece_pages, run.pages - done);
    PF_ASSIGN(const std::uint64_t placed, put_piece(done, pages));
    done += placed;
    if (placed < pages) break;
    PF_TRY(placing_->read_faults(heard_));
  }
  return done;
}

Result<std::uint64_t> ListeningOutlet::put_pages(PageChannel channel, PageRun run,
                                                 std::span<const std::byte> bytes) {
  return put(channel, run, kPiecePages, [&](std::uint64_t from, std::uint64_t pages) {
    return placing_->put_pages(channel, {.first = run.first + from, .pages = pages},
                               bytes.subspan(bytes_of_pages(from), bytes_of_pages(pages)));
  });
}

Result<std::uint64_t> ListeningOutlet::put_zeros(PageChannel channel, PageRun run) {
  return put(channel, run, kZeroPiecePages, [&](std::uint64_t from, std::uint64_t pages) {
    return placing_->put_zeros(channel, {.first = run.first + from, .pages = pages});
  });
}

}  // namespace pageferry
