// The checks that every kind of storage file shares, and the one place that turns a failed sync
// into scrap.
#include "transport/storage_file.h"

#include <fmt/format.h>

namespace pageferry {

Result<void> StorageFile::check_state() const {
  if (scrap_) return tl::make_unexpected(*scrap_);
  if (in_flight_ >= queue_depth_) {
    return fail(Errc::busy, fmt::format("{}: {} operations in flight, limit {}", name_, in_flight_,
                                        queue_depth_));
  }
  return {};
}

Result<void> StorageFile::check_span(const std::byte* data, std::size_t bytes,
                                     std::uint64_t offset) const {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  if (bytes == 0 || bytes > kIoBytesMax || bytes % alignment_bytes_ != 0 ||
      offset % alignment_bytes_ != 0 || address % alignment_bytes_ != 0) {
    return fail(Errc::invalid,
                fmt::format("{}: I/O of {} bytes at offset {} from address {:#x} is not aligned to "
                            "{} or longer than {}",
                            name_, bytes, offset, address, alignment_bytes_, kIoBytesMax));
  }
  if (offset > kFileBytesMax - bytes) {
    return fail(Errc::invalid, fmt::format("{}: I/O of {} bytes at offset {} ends beyond {}", name_,
                                           bytes, offset, kFileBytesMax));
  }
  return {};
}

Result<void> StorageFile::submit_read(std::span<std::byte> to, std::uint64_t offset,
                                      std::uint64_t tag, IoPriority priority) {
  PF_TRY(check_state());
  PF_TRY(check_span(to.data(), to.size(), offset));
  PF_TRY(submit_read_impl(to, offset, tag, priority));
  ++in_flight_;
  return {};
}

Result<void> StorageFile::submit_write(std::span<const std::byte> from, std::uint64_t offset,
                                       std::uint64_t tag, IoPriority priority) {
  PF_TRY(check_state());
  PF_TRY(check_span(from.data(), from.size(), offset));
  PF_TRY(submit_write_impl(from, offset, tag, priority));
  ++in_flight_;
  return {};
}

Result<void> StorageFile::submit_sync(std::uint64_t tag) {
  PF_TRY(check_state());
  PF_TRY(submit_sync_impl(tag));
  ++in_flight_;
  return {};
}

Result<void> StorageFile::submit_allocate(std::uint64_t offset, std::uint64_t length,
                                          std::uint64_t tag) {
  PF_TRY(check_state());
  if (length == 0 || length > kFileBytesMax || offset > kFileBytesMax - length) {
    return fail(Errc::invalid, fmt::format("{}: cannot reserve {} bytes at offset {}, limit {}",
                                           name_, length, offset, kFileBytesMax));
  }
  PF_TRY(submit_allocate_impl(offset, length, tag));
  ++in_flight_;
  return {};
}

void StorageFile::reap(std::vector<IoDone>& done) {
  const std::size_t first = done.size();
  reap_impl(done);
  const std::size_t added = done.size() - first;
  PF_CHECK(added <= in_flight_);
  in_flight_ -= static_cast<unsigned>(added);
  for (std::size_t i = first; i < done.size(); ++i) {
    if (done[i].kind != IoKind::sync || done[i].outcome || scrap_) continue;
    Error why = done[i].outcome.error();
    why.message = fmt::format("{} is scrap, a sync of it failed: {}", name_, why.message);
    scrap_ = std::move(why);
  }
}

}  // namespace pageferry
