// PageOutlet: where a restore's pages leave to. QEMU's postcopy channels are one; tests use a fake.
// It never blocks: it takes what fits now and is asked again when there is room.
//
// Thread rule: one thread, the restore loop's.
#pragma once

#include <cstdint>
#include <span>

#include "pager/page.h"
#include "transport/os/error.h"

namespace pageferry {

// Pages that somebody waits for go on `urgent`, all others on `background`; an outlet with one
// channel has only the latter.
enum class PageChannel : std::uint8_t { urgent, background };

class PageOutlet {
 public:
  virtual ~PageOutlet() = default;

  // Hands over pages from the front of `run`, in order, as many as the channel takes now; returns
  // how many (0: it is full). A page that was taken will arrive as long as the connection lives.
  // `bytes` holds run.pages pages and may be reused after the call. Errors: gone (the peer closed),
  // io.
  virtual Result<std::uint64_t> put_pages(PageChannel channel, PageRun run,
                                          std::span<const std::byte> bytes) = 0;
  // The same for pages that are all zero.
  virtual Result<std::uint64_t> put_zeros(PageChannel channel, PageRun run) = 0;
  // The rest of the backing page that was begun on this channel will not come: what was taken of it must not arrive. Only asked of
  // outlets that keep a backing page until it is whole.
  virtual void forget_begun(PageChannel /*channel*/) {}
};

}  // namespace pageferry
