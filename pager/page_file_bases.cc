// A base is known by its head alone: header and commit record. Its map is not needed, since every entry that leads to it stands in the map
// of the file that needs it.
#include "pager/page_file_bases.h"

#include <fmt/format.h>

#include <utility>

#include "pager/page_file_pieces.h"

namespace pageferry {
namespace {

Result<void> check_layout_of_base(const PageFileHeader& header, const PageFileHeader& base) {
  const bool same = base.pages == header.pages && base.layout_bytes == header.layout_bytes &&
                    base.layout_crc == header.layout_crc && base.tail_offset == header.tail_offset;
  if (same) return {};
  return page_file_corrupt(
      fmt::format("it holds another layout: {} pages, layout checksum {:#010x}; "
                  "wanted {} pages, {:#010x}",
                  base.pages, base.layout_crc, header.pages, header.layout_crc));
}

Result<void> check_base_file(StorageFile& file, const PageFileHeader& header,
                             const PageFileBase& wanted, const WaitBounds& bounds) {
  PF_ASSIGN(const std::uint64_t size, file.size());
  if (size < wanted.file_bytes) {
    return page_file_corrupt(
        fmt::format("{} bytes long, {} were committed", size, wanted.file_bytes));
  }
  PF_ASSIGN(const AlignedMemory memory, read_section(file, kHeaderOffset, kLayoutOffset, bounds));
  const std::span<const std::byte> head(memory.data(), kLayoutOffset);
  PF_ASSIGN(const PageFileHeader base,
            decode_header(head.subspan<kHeaderOffset, kFileBlockBytes>()));
  PF_ASSIGN(const CommitRecord record,
            decode_commit(base, head.subspan<kCommitOffset, kFileBlockBytes>()));
  if (record.commit_id != wanted.commit_id || record.file_bytes != wanted.file_bytes) {
    return page_file_corrupt(fmt::format("it is commit {} of {} bytes, wanted was {} of {}",
                                         to_hex(record.commit_id), record.file_bytes,
                                         to_hex(wanted.commit_id), wanted.file_bytes));
  }
  return check_layout_of_base(header, base);
}

Result<std::unique_ptr<StorageFile>> open_base(const PageFileHeader& header,
                                               const PageFileBase& wanted,
                                               const BaseFileOpener& opener,
                                               const WaitBounds& bounds) {
  if (!opener) return fail(Errc::invalid, "nobody said where bases lie");
  PF_ASSIGN(std::unique_ptr<StorageFile> file, opener(wanted.file_name()));
  Result<void> checked = check_base_file(*file, header, wanted, bounds);
  // As for the file itself: the way to the store may have been bad, or a cache stale.
  const bool may_have_been_the_way =
      !checked && (checked.error().code == Errc::corrupt || checked.error().code == Errc::io);
  if (may_have_been_the_way && file->in_flight() == 0) {
    checked = check_base_file(*file, header, wanted, bounds);
  }
  if (!checked) return tl::make_unexpected(std::move(checked).error());
  return file;
}

}  // namespace

Result<PageFileBases> PageFileBases::open(const PageFileHeader& header,
                                          const BaseFileOpener& opener, const WaitBounds& bounds) {
  PageFileBases bases;
  for (const PageFileBase& wanted : header.bases) {
    auto file = open_base(header, wanted, opener, bounds);
    if (!file) {
      return with_context(std::move(file).error(),
                          fmt::format("base {} of {} ({})", bases.count() + 1, header.bases.size(),
                                      wanted.file_name()));
    }
    bases.files_.push_back(std::move(*file));
  }
  return bases;
}

}  // namespace pageferry
