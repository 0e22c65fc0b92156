// SentMap: for every page of a guest that is being restored, whether it is absent (at the
// destination), in flight (taken by a read, a queue or a half written record) or sent. Demand and
// prefetch share it, so no page leaves twice: a page sent twice is fatal for a QEMU destination, a
// page never sent hangs its guest.
//
// Two bits a page: 64 MiB for each TiB of guest.
//
// Thread rule: one thread, the restore loop's.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "pager/page.h"

namespace pageferry {

enum class PageState : std::uint8_t { absent, in_flight, sent };

class SentMap {
 public:
  explicit SentMap(std::uint64_t pages);

  std::uint64_t pages() const { return pages_; }
  std::uint64_t pages_absent() const { return pages_ - pages_taken_; }
  std::uint64_t pages_sent() const { return pages_sent_; }
  bool all_sent() const { return pages_sent_ == pages_; }

  // Precondition for all below: the pages lie inside the map.
  PageState state(PageIndex page) const;
  // absent -> in flight. Precondition: all pages of the run are absent (checked: I1, no page leaves
  // twice).
  void take(PageRun run);
  // in flight -> absent: the read failed and will be tried in smaller pieces. Precondition: all in
  // flight (checked).
  void give_back(PageRun run);
  // in flight -> sent. Precondition: all in flight (checked).
  void mark_sent(PageRun run);
  // sent -> in flight: they were taken as a part of something that will not be completed. Precondition: all sent (checked).
  void take_back(PageRun run);
  // absent -> sent: the destination says that it has the page (recovery). Precondition: all absent
  // (checked).
  void mark_received(PageRun run);

  // The first absent page in [from, end); nullopt when there is none. Precondition: raw(end) <=
  // pages().
  std::optional<PageIndex> next_absent(PageIndex from, PageIndex end) const;
  // How many pages from `first` on are absent without a gap, at most pages_max; 0 when `first`
  // itself is not.
  std::uint64_t absent_run(PageIndex first, std::uint64_t pages_max) const;

 private:
  using Words = std::vector<std::uint64_t>;
  void check_inside(PageRun run) const;

  std::uint64_t pages_;
  std::uint64_t pages_taken_ = 0;  // in flight or sent
  std::uint64_t pages_sent_ = 0;
  Words taken_;  // one bit a page: in flight or sent
  Words sent_;   // one bit a page; a subset of taken_
};

}  // namespace pageferry
