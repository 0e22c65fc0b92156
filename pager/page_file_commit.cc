// The end of a page file: what the map blocks on the store lack goes to the delta, behind the
// checksums of all map blocks, then everything is made durable, then the commit record is written
// and made durable. Only after that second sync is the image valid, and a crash before it leaves a
// commit block of zeros, a torn one (checksum), or a good one with everything it vouches for already
// durable (W4).
#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "pager/page_file_writer.h"
#include "transport/little_endian.h"

namespace pageferry {
namespace {
constexpr std::uint64_t kBitsPerWord = 64;
}  // namespace

Result<CommitInfo> PageFileWriter::finish_and_commit() {
  PF_TRY(check_page(PageIndex{0}));
  // A guest that never ran has no blackout pass: everything is at home.
  if (state_ == State::brownout) PF_TRY(begin_blackout());
  const auto commit = [this]() -> Result<CommitRecord> {
    CommitRecord record = make_record();
    PF_TRY(write_index(record));
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
  record.format_version = header_.format_version();
  record.base_pages = stored_base_pages_;
  for (const MapBlockState& state : map_states_)
    record.map_crc = chain_crc(record.map_crc, state.crc);
  return record;
}

std::uint64_t PageFileWriter::changed_entries() const {
  std::uint64_t count = 0;
  for (const MapBlockState& state : map_states_) count += state.changes();
  return count;
}

// The checksums of the map blocks and the delta, in one piece: a reader that has the map already needs nothing else.
Result<void> PageFileWriter::write_index(CommitRecord& record) {
  record.delta_entries = changed_entries();
  counters_.delta_entries.store(record.delta_entries, std::memory_order_relaxed);
  const std::uint64_t checksums_bytes = header_.map_checksum_blocks() * kFileBlockBytes;
  PF_TRY(reserve_index(checksums_bytes + record.delta_blocks() * kFileBlockBytes));
  record.map_checksums_offset = tail_next_;
  PF_TRY(write_map_checksums());
  if (record.delta_entries == 0) return {};
  record.delta_offset = tail_next_;
  return write_delta(record);
}

// Room for so many bytes in a row at tail_next_.
Result<void> PageFileWriter::reserve_index(std::uint64_t bytes) {
  if (bytes <= tail_end_ - tail_next_) return {};
  const std::uint64_t slots_end = header_.slots_offset + bytes_of_pages(slots_);
  if (tail_next_ < slots_end) tail_next_ = slots_end;
  tail_end_ = tail_next_ + bytes;
  return queue_->allocate(tail_next_, bytes);
}

Result<void> PageFileWriter::write_map_checksums() {
  for (std::size_t first = 0; first < map_states_.size(); first += kMapChecksumsPerBlock) {
    PF_ASSIGN(const FileBlock block,
              queue_->stage(WriteStream::append, tail_next_, WriteQueue::Place::fresh));
    std::fill(block.begin(), block.end(), std::byte{0});
    const std::size_t count = std::min(kMapChecksumsPerBlock, map_states_.size() - first);
    for (std::size_t i = 0; i < count; ++i) {
      store_le<std::uint32_t>(block, i * sizeof(std::uint32_t), map_states_[first + i].crc);
    }
    tail_next_ += kFileBlockBytes;
  }
  return {};
}

// What the map blocks on the store lack. The guest waits: straight from the bits into the blocks.
Result<void> PageFileWriter::write_delta(CommitRecord& record) {
  DeltaEntries entries;
  std::uint32_t number = 0;
  for (std::uint64_t block = 0; block < map_states_.size(); ++block) {
    for (std::uint64_t word = 0; word < std::size(map_states_[block].changed); ++word) {
      std::uint64_t bits = map_states_[block].changed[word];
      for (; bits != 0; bits &= bits - 1) {
        const auto bit = static_cast<std::uint64_t>(std::countr_zero(bits));
        const PageIndex page{block * kMapEntriesPerBlock + word * kBitsPerWord + bit};
        entries.list[entries.count++] = {page, map_.get(page)};
        if (entries.count == entries.list.size()) {
          PF_TRY(write_delta_block(record, number++, entries));
        }
      }
    }
  }
  if (entries.count == 0) return {};
  return write_delta_block(record, number, entries);
}

Result<void> PageFileWriter::write_delta_block(CommitRecord& record, std::uint32_t number,
                                               DeltaEntries& entries) {
  PF_ASSIGN(const FileBlock block,
            queue_->stage(WriteStream::append, tail_next_, WriteQueue::Place::fresh));
  const std::span<const DeltaEntry> list(entries.list.data(), entries.count);
  record.delta_crc =
      chain_crc(record.delta_crc, encode_delta_block(ids_.file_id, number, list, block));
  entries.count = 0;
  tail_next_ += kFileBlockBytes;
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
