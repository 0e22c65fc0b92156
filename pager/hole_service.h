// HoleService: answers a userfaultfd that stays registered after its restore, because write protection in it is how writes are tracked
// (restored_write_source.h) and the kernel takes a registration back only as a whole.
//
//   a touch of a page that is missing   it was there and was given back (a hole): a page of zeros
//   a write to a protected page         the protection goes (synchronous tracking; else the kernel does that by itself)
//
// Zeros are copied, not mapped: a marker of write protection may stand where the page was, and the kernel's zero page does not go over it.
// They are placed unprotected, so that the page counts as written.
//
// Begins when no pager serves any more: whoever waits is woken and asks again, so that what a pager had read and not answered is not lost.
//
// Thread rule: made and destroyed by one thread; a thread of its own, which takes no signals and touches no guest memory. Lifetime: the
// descriptor, which does not block, outlives it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "pager/page.h"
#include "transport/cancel_signal.h"
#include "transport/os/error.h"

namespace pageferry {

class HoleService {
 public:
  struct Range {
    std::uint64_t address = 0;
    std::uint64_t bytes = 0;
  };
  // Errors: no_space (no thread), vmm (the ranges are not registered).
  static Result<std::unique_ptr<HoleService>> start(int userfault,
                                                    const std::vector<Range>& ranges);
  ~HoleService();
  HoleService(const HoleService&) = delete;
  HoleService& operator=(const HoleService&) = delete;

 private:
  explicit HoleService(int userfault) : userfault_(userfault), zeros_(kPageSizeBytes) {}
  void run();
  void answer_all();
  void wake(std::uint64_t page_address);

  const int userfault_;
  const std::vector<std::byte> zeros_;
  CancelSignal stop_;
  std::thread thread_;
};

}  // namespace pageferry
