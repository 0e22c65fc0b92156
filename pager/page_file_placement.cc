// Which block a page goes to: while the guest runs, to its home slot, the next free one when it is put for the first time; in the
// blackout, to the next block of the tail. And the way of lent memory, which is written from where it lies.
#include <algorithm>
#include <utility>

#include "pager/page_file_writer.h"
#include "transport/crc32c.h"

namespace pageferry {
namespace {

// Home slots are reserved this far at a time, and asked for when half of the last step is left.
constexpr std::uint64_t kReserveStepBytes = std::uint64_t{64} << 20;

std::uint64_t section_aligned(std::uint64_t bytes) {
  return (bytes + kSectionAlignmentBytes - 1) / kSectionAlignmentBytes * kSectionAlignmentBytes;
}

}  // namespace

Result<void> PageFileWriter::reserve_slots() {
  const std::uint64_t limit = bytes_of_pages(layout_.pages());
  const std::uint64_t used = bytes_of_pages(slots_);
  if (slots_reserved_bytes_ >= limit || used + kReserveStepBytes / 2 < slots_reserved_bytes_) {
    return {};
  }
  const std::uint64_t step = std::min(kReserveStepBytes, limit - slots_reserved_bytes_);
  const std::uint64_t from = header_.slots_offset + slots_reserved_bytes_;
  slots_reserved_bytes_ += step;
  return queue_->allocate(from, step);
}

// The page's slot, given out now if it had none.
Result<WriteQueue::Place> PageFileWriter::give_home(MapEntry& entry) {
  count(counters_.home_pages, 1);
  if (entry.base() == 0 && entry.block() != 0) {
    entry.location = entry.block();
    count(counters_.rewritten_pages, 1);
    return WriteQueue::Place::rewritten;
  }
  PF_TRY(reserve_slots());
  entry.location = (header_.slots_offset + bytes_of_pages(slots_)) / kFileBlockBytes;
  ++slots_;
  return WriteQueue::Place::fresh;
}

Result<FileBlock> PageFileWriter::place_at_home(MapEntry& entry) {
  PF_ASSIGN(const WriteQueue::Place place, give_home(entry));
  const auto stream =
      place == WriteQueue::Place::fresh ? WriteStream::append : WriteStream::overwrite;
  return queue_->stage(stream, entry.location * kFileBlockBytes, place);
}

Result<void> PageFileWriter::put_lent_pages(PageRun run, std::span<const std::byte> bytes) {
  if (state_ != State::brownout) return PageSink::put_lent_pages(run, bytes);
  LentRun lent;
  for (std::uint64_t i = 0; i < run.pages; ++i) {
    const PageBytes page(bytes.data() + bytes_of_pages(i), kPageSizeBytes);
    PF_TRY(put_lent_page(run.first + i, page, lent));
  }
  return write_lent(lent);
}

Result<void> PageFileWriter::put_lent_page(PageIndex page, PageBytes bytes, LentRun& run) {
  count(counters_.put_pages, 1);
  if (is_zero_page(bytes)) return put_zero(page);
  PF_TRY(check_page(page));
  MapEntry entry = map_.get(page);
  PF_ASSIGN(const WriteQueue::Place place, give_home(entry));
  const std::uint64_t offset = entry.location * kFileBlockBytes;
  const bool follows = run.place == place && run.offset + run.bytes.size() == offset &&
                       run.bytes.data() + run.bytes.size() == bytes.data() &&
                       run.bytes.size() < options_.chunk_bytes;
  if (!follows) {
    PF_TRY(write_lent(run));
    run = {.bytes = bytes.first(0), .offset = offset, .place = place};
  }
  run.bytes = {run.bytes.data(), run.bytes.size() + bytes.size()};
  entry.crc = crc32c(bytes);
  record(page, entry);
  PF_TRY(advance_map(page));
  return throttle();
}

Result<void> PageFileWriter::write_lent(LentRun& run) {
  if (run.bytes.empty()) return {};
  const LentRun written = std::exchange(run, LentRun{});
  return queue_->write_lent(written.bytes, written.offset, written.place);
}

Result<FileBlock> PageFileWriter::place_in_tail(MapEntry& entry) {
  if (tail_next_ == tail_end_) {
    // Full: go on behind the slots, one step at a time, so that the file still grows in order.
    const std::uint64_t from = std::max(tail_next_, header_.slots_offset + bytes_of_pages(slots_));
    tail_next_ = section_aligned(from);
    const std::uint64_t step = std::min(kReserveStepBytes, section_aligned(layout_.bytes()));
    tail_end_ = tail_next_ + step;
    PF_TRY(queue_->allocate(tail_next_, step));
  }
  PF_ASSIGN(const FileBlock block,
            queue_->stage(WriteStream::append, tail_next_, WriteQueue::Place::fresh));
  entry.location = tail_next_ / kFileBlockBytes;
  tail_next_ += kFileBlockBytes;
  count(counters_.tail_pages, 1);
  if (entry.location * kFileBlockBytes >= header_.slots_offset)
    count(counters_.tail_overflow_pages, 1);
  return block;
}

bool PageFileWriter::is_in_tail(const MapEntry& entry) const {
  if (entry.is_zero() || entry.base() != 0) return false;
  const std::uint64_t slots_first = header_.slots_offset / kFileBlockBytes;
  return entry.block() < slots_first || entry.block() >= slots_first + slots_;
}

}  // namespace pageferry
