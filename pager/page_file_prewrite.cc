// Writing zeros over the tail before the guest is stopped: space that was only reserved is 1.7 times slower to write (the file system
// has to note each piece), and then the guest waits. While passes are made, zeros go along where the store has little else to do;
// before a blackout the rest of what it will need is made ready at once.
#include <algorithm>
#include <utility>

#include "pager/page_file_writer.h"

namespace pageferry {
namespace {

// Zeros go to the tail only while the store has little else to do.
constexpr unsigned kPrewritesInFlight = 2;
constexpr unsigned kPrewritesAlone = 6;  // when there is nothing else
constexpr unsigned kPrewriteBelowWrites = 4;
constexpr std::uint64_t kPrewriteFirstPassBytes = std::uint64_t{64} << 20;

}  // namespace

std::uint64_t PageFileWriter::prewrite_end() const {
  return version_ > 1 ? header_.tail_bytes : std::min(header_.tail_bytes, kPrewriteFirstPassBytes);
}

Result<void> PageFileWriter::prewrite_some() {
  if (prewritten_ >= prewrite_end() || queue_->zeros_in_flight() >= kPrewritesInFlight ||
      queue_->writes_in_flight() >= kPrewriteBelowWrites || !queue_->can_start()) {
    return {};
  }
  return prewrite_piece();
}

Result<void> PageFileWriter::prewrite_piece() {
  PF_TRY(queue_->write_zeros(zeros_.bytes(), header_.tail_offset + prewritten_));
  prewritten_ += zeros_.bytes().size();
  counters_.tail_prewritten_bytes.store(prewritten_, std::memory_order_relaxed);
  return {};
}

Result<void> PageFileWriter::prepare_blackout(std::uint64_t remaining_bytes) {
  PF_TRY(check_page(PageIndex{0}));
  if (state_ != State::brownout) {
    return fail(Errc::invalid, "page file: prepare_blackout() out of turn");
  }
  // Else they would be written, and read by the destination, while the guest is stopped.
  PF_TRY(write_map_blocks(0, map_.blocks(), kMapChangesDense));
  PF_TRY(queue_->drain());
  // What was lent needed no staging memory.
  if (!std::exchange(all_populated_, true)) pool_->populate(pool_->count());
  if (options_.bandwidth_limit_bytes_per_s != 0) return {};
  const std::uint64_t end = std::min(header_.tail_bytes, remaining_bytes);
  while (prewritten_ < end) {
    if (queue_->zeros_in_flight() >= kPrewritesAlone || !queue_->can_start()) {
      PF_TRY(queue_->wait_for_zeros());
    }
    PF_TRY(prewrite_piece());
  }
  return queue_->drain();
}

}  // namespace pageferry
