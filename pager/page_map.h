// PageMap: the map entry of every page of a guest, in memory in the very blocks that the page file
// holds: 16 bytes a page, 4.02 MiB per GiB of guest. Memory of entries that were never set is not
// touched.
//
// Thread rule: one thread writes; any number may read when nobody writes.
#pragma once

#include <cstdint>
#include <span>

#include "pager/page_file_format.h"
#include "transport/io_buffer.h"

namespace pageferry {

class PageMap {
 public:
  PageMap() = default;
  // All pages zero, version 0. Errc::io when there is no memory.
  static Result<PageMap> make(std::uint64_t pages);

  std::uint64_t pages() const { return pages_; }
  std::uint64_t blocks() const { return (pages_ + kMapEntriesPerBlock - 1) / kMapEntriesPerBlock; }

  // Precondition of both: raw(page) < pages().
  MapEntry get(PageIndex page) const {
    return load_map_entry(block(raw(page) / kMapEntriesPerBlock), raw(page) % kMapEntriesPerBlock);
  }
  void set(PageIndex page, const MapEntry& entry) {
    store_map_entry(block(raw(page) / kMapEntriesPerBlock), raw(page) % kMapEntriesPerBlock, entry);
  }

  // Precondition: number < blocks().
  FileBlock block(std::uint64_t number) {
    return FileBlock(memory_.data() + number * kFileBlockBytes, kFileBlockBytes);
  }
  ConstFileBlock block(std::uint64_t number) const {
    return ConstFileBlock(memory_.data() + number * kFileBlockBytes, kFileBlockBytes);
  }
  // All blocks, to read them in at once.
  std::span<std::byte> bytes() { return {memory_.data(), blocks() * kFileBlockBytes}; }
  // Leaks the memory: a hung device may still read into it.
  void abandon() { memory_.abandon(); }

 private:
  AlignedMemory memory_;
  std::uint64_t pages_ = 0;
};

}  // namespace pageferry
