// The end of a page file: what the map blocks on the store lack goes to the delta, then everything
// is made durable, then the commit record is written and made durable. Only after that second sync
// is the image valid, and a crash before it leaves a commit block of zeros, a torn one (checksum),
// or a good one with everything it vouches for already durable (W4).
#include <fmt/format.h>

#include <algorithm>

#include "pager/page_file_writer.h"

namespace pageferry {

Result<CommitInfo> PageFileWriter::finish_and_commit() {
  PF_TRY(check_page(PageIndex{0}));
  // A guest that never ran has no blackout pass: everything is at home.
  if (state_ == State::brownout) PF_TRY(begin_blackout());
  const auto commit = [this]() -> Result<CommitRecord> {
    CommitRecord record = make_record();
    PF_TRY(write_delta(record));
    record.file_bytes = used_bytes();
    PF_TRY(queue_->sync());
    PF_TRY(write_commit(record));
    return record;
  };
  Result<CommitRecord> record = commit();
  publish();
  if (!record) {
    failed_ = record.error();
    return tl::make_unexpected(*failed_);
  }
  state_ = State::committed;
  return CommitInfo{*record, layout_.bytes()};
}

CommitRecord PageFileWriter::make_record() const {
  CommitRecord record;
  record.file_id = ids_.file_id;
  record.commit_id = ids_.commit_id;
  record.slots = slots_;
  record.version_max = version_max_;
  record.stored_pages = stored_pages_;
  record.tail_pages = stored_tail_pages_;
  for (const MapBlockState& state : map_states_)
    record.map_crc = chain_crc(record.map_crc, state.crc);
  return record;
}

Result<void> PageFileWriter::write_delta(CommitRecord& record) {
  std::vector<DeltaEntry> entries;
  for (std::uint64_t number = 0; number < map_states_.size(); ++number) {
    const MapBlockState& state = map_states_[number];
    if (state.changes() == 0) continue;
    for (std::uint64_t index = 0; index < kMapEntriesPerBlock; ++index) {
      if ((state.changed[index / 64] >> (index % 64) & 1) == 0) continue;
      const PageIndex page{number * kMapEntriesPerBlock + index};
      entries.push_back({page, map_.get(page)});
    }
  }
  record.delta_entries = entries.size();
  counters_.delta_entries.store(entries.size(), std::memory_order_relaxed);
  if (entries.empty()) return {};
  const std::uint64_t bytes = record.delta_blocks() * kFileBlockBytes;
  if (bytes > tail_end_ - tail_next_) {
    const std::uint64_t slots_end = header_.slots_offset + bytes_of_pages(slots_);
    if (tail_next_ < slots_end) tail_next_ = slots_end;
    tail_end_ = tail_next_ + bytes;
    PF_TRY(queue_->allocate(tail_next_, bytes));
  }
  record.delta_offset = tail_next_;
  std::span<const DeltaEntry> left = entries;
  for (std::uint32_t number = 0; !left.empty(); ++number) {
    PF_ASSIGN(const FileBlock block,
              queue_->stage(WriteStream::append, tail_next_, WriteQueue::Place::fresh));
    const std::size_t count = std::min(kDeltaEntriesPerBlock, left.size());
    const std::uint32_t crc = encode_delta_block(ids_.file_id, number, left.first(count), block);
    record.delta_crc = chain_crc(record.delta_crc, crc);
    left = left.subspan(count);
    tail_next_ += kFileBlockBytes;
  }
  return {};
}

Result<void> PageFileWriter::write_commit(const CommitRecord& record) {
  PF_ASSIGN(const FileBlock block,
            queue_->stage(WriteStream::append, kCommitOffset, WriteQueue::Place::rewritten));
  encode_commit(record, block);
  return queue_->sync();
}

std::uint64_t PageFileWriter::used_bytes() const {
  return std::max(tail_next_, header_.slots_offset + bytes_of_pages(slots_));
}

}  // namespace pageferry
